"""One module per family of claims; importing this package registers them, in the order in which pages show them."""

import importlib

ORDER = (
    *("exact", "controls", "network", "orders", "information", "tightness", "certificates"),
    *("policy", "gap", "approximations", "regret", "transformers"),
)
for _name in ORDER:
    importlib.import_module(f"{__name__}.{_name}")

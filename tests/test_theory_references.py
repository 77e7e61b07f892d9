"""A whole trial, its certificate, its floor and its predictors again: one replicate, one duel, one number at a time."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats

from bandits.core.rng import Key
from bandits.sim.problem import Problem
from bandits.sim.truths import TRUTHS
from theory_checks.maths.certificate import GRID
from theory_checks.maths.predictors import correlations, predictors
from theory_checks.maths.tangent import Counts, Setting, TangentWorld
from theory_checks.maths.trials import Trial, floor, play

F64 = torch.float64


def sigma(m):
    return 1 / (1 + np.exp(-m))


def flat(m):
    """σ'(m)."""
    return sigma(m) * (1 - sigma(m))


class Link:
    """σ on [-limit, limit], straight beyond, by cases; its integral by its own cases."""

    def __init__(self, limit: float = np.inf):
        self.limit = limit

    def value(self, m: float) -> float:
        if abs(m) <= self.limit:
            return sigma(m)
        end = math.copysign(self.limit, m)
        return sigma(end) + flat(end) * (m - end)

    def primitive(self, m: float) -> float:
        """∫ from -∞ of σ up to the nearer end, and a straight line's integral beyond it."""
        if abs(m) <= self.limit:
            return np.logaddexp(0, m)
        end = math.copysign(self.limit, m)
        return np.logaddexp(0, end) + (sigma(end) + self.value(m)) / 2 * (m - end)

    def slope(self, m: float) -> float:
        return flat(max(-self.limit, min(self.limit, m)))


def minimum(phi, asked, won, lam, link=None) -> np.ndarray:
    """The penalised fit, by SciPy."""
    link = link or Link()

    def objective(theta):
        m = phi @ theta
        value = sum(a * link.primitive(x) - w * x for a, w, x in zip(asked, won, m, strict=True))
        pull = sum((a * link.value(x) - w) * f for a, w, x, f in zip(asked, won, m, phi, strict=True))
        return value + lam / 2 * theta @ theta, pull + lam * theta

    def hessian(theta):
        m = phi @ theta
        return sum(a * link.slope(x) * np.outer(f, f) for a, x, f in zip(asked, m, phi, strict=True)) + lam * np.eye(
            len(theta)
        )

    start = np.zeros(phi.shape[1])
    return optimize.minimize(objective, start, jac=True, hess=hessian, method="trust-exact", options={"gtol": 1e-11}).x


def width_in(matrix, vector) -> float:
    return math.sqrt(vector @ np.linalg.inv(matrix) @ vector)


def ratio(error: float, side: float) -> float:
    return error / side if error > 1e-12 else 0.0


def naive_floor(phi, asked, norm) -> np.ndarray:
    """Le Cam's two points, for every duel and every ν of the grid."""
    matrix, best = sum(a * np.outer(f, f) for a, f in zip(asked, phi, strict=True)), np.zeros(len(phi))
    for place, f in enumerate(phi):
        for nu in np.logspace(-5, 3, 17):
            psi = np.linalg.solve(matrix + nu * np.eye(len(f)), f)
            told = sum(a * (g @ psi) ** 2 for a, g in zip(asked, phi, strict=True))  # divergence: s²/8 of this
            s = 2 * norm / np.linalg.norm(psi)
            if told > 0:
                s = min(s, math.sqrt(4 / told))
            best[place] = max(best[place], s * abs(f @ psi) / 2)
    return best


def least_ratio(m: float, link: Link) -> float:
    """The secant weight, over a grid of true differences."""
    weights = [link.slope(m)]
    for delta in np.linspace(-link.limit, link.limit, 2001):
        if abs(delta - m) > 1e-3:
            gap = link.primitive(delta) - link.primitive(m) - link.value(m) * (delta - m)
            weights.append(2 * gap / (delta - m) ** 2)
    return min(weights)


def naive_certificate(phi, asked, won, lam, norm, limit, delta, theta) -> np.ndarray:
    """Evidence by quadrature, a radius for every centre, the narrowest side for every duel."""
    p, link, centres, bounds = phi.shape[1], Link(limit), [], []
    for factor in GRID:
        nu = factor * lam
        at = minimum(phi, asked, won, nu, link)
        m = phi @ at
        loss = nu / 2 * at @ at - sum(w * x - a * link.primitive(x) for a, w, x in zip(asked, won, m, strict=True))
        precision = sum(a * flat(x) * np.outer(f, f) for a, x, f in zip(asked, m, phi, strict=True)) + nu * np.eye(p)
        covariance = np.linalg.inv(precision)
        likelihood = 0.0
        for a, w, x, f in zip(asked, won, m, phi, strict=True):
            if a > 0:
                sd = math.sqrt(f @ covariance @ f)
                mean = integrate.quad(
                    lambda z, x=x, sd=sd: np.logaddexp(0, x + sd * z) * stats.norm.pdf(z), -9, 9, points=[-x / sd]
                )[0]
                likelihood += w * x - a * mean
        from_prior = nu * np.trace(covariance) + nu * at @ at - p + np.linalg.slogdet(precision / nu)[1]
        bounds.append(likelihood - from_prior / 2)
        ellipsoid = sum(a * least_ratio(x, link) * np.outer(f, f) for a, x, f in zip(asked, m, phi, strict=True))
        centres.append((nu, at, loss, ellipsoid + nu * np.eye(p)))
    evidence = np.log(np.mean(np.exp(bounds)))
    sides = []
    for nu, at, loss, ellipsoid in centres:
        twice = 2 * (math.log(1 / delta) - evidence + nu * norm**2 / 2 - loss)
        sides.append([abs(f @ (at - theta)) + math.sqrt(max(twice, 0)) * width_in(ellipsoid, f) for f in phi])
    return np.min(sides, axis=0)


def naive_predictors(phi, asked, theta, truth, lam, ridge) -> dict[str, np.ndarray]:
    information = sum(a * flat(f @ theta) * np.outer(f, f) for a, f in zip(asked, phi, strict=True))
    p = phi.shape[1]
    hessian, v = information + lam * np.eye(p), ridge * np.eye(p)
    v = v + sum(a * np.outer(f, f) for a, f in zip(asked, phi, strict=True))
    inverse, found = np.linalg.inv(hessian), {name: [] for name in ("width", "norm", "fisher", "noise", "bias")}
    found |= {name: [] for name in ("both", "margin", "oracle-bias", "oracle")}
    for f in phi:
        noise = math.sqrt(f @ inverse @ information @ inverse @ f)
        bias, true = (lam * abs(f @ inverse @ at) for at in (theta, truth))
        found["width"].append(width_in(v, f))
        found["norm"].append(math.sqrt(f @ f))
        found["fisher"].append(width_in(hessian, f))
        found["noise"].append(noise)
        found["bias"].append(bias)
        found["both"].append(math.hypot(noise, bias))
        found["margin"].append(abs(f @ theta))
        found["oracle-bias"].append(true)
        found["oracle"].append(math.hypot(noise, true))
    return {name: np.array(values) for name, values in found.items()}


def naive_trial(trial: Trial, key: Key) -> dict[str, float]:
    """One replicate of a trial that asks one duel a round, from the draws of its key."""
    world = TangentWorld.of(trial.setting, key.fold_in("world"))
    phi, target = world.features[0].numpy(), world.theta[0].numpy()
    truth, norm, limit = phi @ target, math.sqrt(target @ target), trial.setting.largest
    kappa, lam, ridge = flat(limit), trial.regularisation, trial.regularisation / flat(limit)
    n, p = phi.shape
    asked, won, noise, v = np.zeros(n), np.zeros(n), np.zeros(p), ridge * np.eye(p)
    out = dict.fromkeys(("potential", "chain", "gradient_norm"), 0.0) | {"kappa": 0.25}
    score = np.zeros(n) if trial.sampling == "adversary" else np.abs(truth)
    moments = set(np.geomspace(1, trial.rounds, trial.certificates).round().astype(int))
    for step in range(1, trial.rounds + 1):
        child = key.fold_in("round", step)
        ties = child.fold_in("ties").uniform(1, n)[0, 0].numpy()
        pick = max((i for i in range(n) if score[i] >= score.max() * (1 - 1e-9)), key=lambda i: ties[i])
        won_it = float(child.fold_in("labels").uniform(1)[0, 0]) < sigma(truth[pick])
        before = width_in(v, phi[pick])
        out["potential"] += min(1, before**2)
        out["chain"] += math.log(1 + before**2)
        asked[pick] += 1
        won[pick] += won_it
        noise = noise + (won_it - sigma(truth[pick])) * phi[pick]
        v = v + np.outer(phi[pick], phi[pick])
        information = np.linalg.slogdet(v / ridge)[1]
        plain = minimum(phi, asked, won, lam)
        straight = minimum(phi, asked, won, lam, Link(limit))
        fitted, widths = phi @ plain, np.array([width_in(v, f) for f in phi])
        slopes = [flat(max(abs(fitted[i]), abs(truth[i]))) for i in range(n) if asked[i]]
        out["kappa"] = min(out["kappa"], *slopes)
        log_term = math.sqrt(information + 2 * math.log(1 / trial.delta))
        audited = min(kappa, *slopes)
        sides = {
            "plain": (fitted, log_term / (2 * kappa) + norm * math.sqrt(lam / kappa)),
            "audited": (fitted, log_term / (2 * audited) + lam * norm / (math.sqrt(ridge) * audited)),
            "extended": (phi @ straight, log_term / (2 * kappa) + norm * math.sqrt(lam / kappa)),
            "proposition": (fitted, log_term / kappa + norm * math.sqrt(lam / kappa) + 1),
        }
        bounds = {name: (at, gamma * widths) for name, (at, gamma) in sides.items()}
        if step in moments:
            certified = naive_certificate(phi, asked, won, lam, norm, limit, trial.delta, plain)
            bounds["certificate"] = fitted, certified
            paper, exact = bounds["proposition"][1], bounds["plain"][1]
            lowest = naive_floor(phi, asked, norm)
            out["gain_proposition"] = lower_median(paper / certified)
            out["gain_exact"] = lower_median(exact / certified)
            out["gain_range"] = lower_median(paper / np.minimum(certified, limit + np.abs(fitted)))
            out["gain_possible"] = lower_median(paper / lowest)
            out["above_floor"] = lower_median(certified / lowest)
        for name, (at, side) in bounds.items():
            error = np.abs(at - truth)
            ratios = [ratio(e, s) for e, s in zip(error, side, strict=True)]
            out[f"worst_{name}"] = max(out.get(f"worst_{name}", 0), *ratios)
            out[f"tightness_{name}"] = lower_median([1 / max(r, 1e-12) for r in ratios])
            out[f"sharpest_{name}"] = min(out.get(f"sharpest_{name}", np.inf), *(side / (limit + np.abs(at))))
            needed = [ratio(e, w) for e, w in zip(error, widths, strict=True)]
            out[f"needed_{name}"] = max(out.get(f"needed_{name}", 0), *needed)
        surprised = ratio(width_in(v, noise), log_term / 2)
        out["worst_noise"] = max(out.get("worst_noise", 0), surprised)
        out["tightness_noise"] = 1 / max(surprised, 1e-12)
        if trial.sampling == "adversary":
            score = np.array([ratio(abs(f - t), w) for f, t, w in zip(fitted, truth, widths, strict=True)])
    return out | {
        "norm": norm,
        "information": information,
        "answers": float(trial.rounds),
        "error": math.sqrt(np.mean((fitted - truth) ** 2)),
        "gamma": log_term / kappa + norm * math.sqrt(lam / kappa) + 1,
        "gamma_noise": log_term / kappa,
        "gamma_prior": norm * math.sqrt(lam / kappa),
        "potential": out["potential"] / (2 * information),
        "chain": abs(out["chain"] - information),
    }


def lower_median(values) -> float:
    """The middle value, the lower of two: what a median over duels is here."""
    return float(np.sort(values)[(len(values) - 1) // 2])


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["adversary", "repeated"])
@pytest.mark.parametrize("lam", [1.0, 0.05])
def test_a_trial_is_the_naive_one(sampling, lam):
    """λ = 0.05 lets fitted differences leave the region where κ holds, so that the extended link differs."""
    trial = Trial(Setting(2, 3, width=8), sampling, regularisation=lam, rounds=7, certificates=3)
    found = play(trial, Key(5, (0, 1)))
    for r in range(2):
        expected = naive_trial(trial, Key(5, (r,)))
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert found[name][r] == pytest.approx(value, rel=2e-5, abs=1e-7), name
    if lam < 1:
        assert (found["worst_extended"] != found["worst_plain"]).any()


def world_and_counts() -> tuple[TangentWorld, Counts, torch.Tensor]:
    world = TangentWorld.of(Setting(3, 3, width=8), Key(9, (0, 1)))
    rng = np.random.default_rng(0)
    asked = torch.from_numpy(rng.integers(0, 5, (2, 9))).to(F64)
    return world, Counts(asked, asked / 2), torch.from_numpy(rng.normal(size=(2, 6))) / 3


def test_the_floor_is_the_naive_one():
    world, counts, _ = world_and_counts()
    for r in range(2):
        expected = naive_floor(world.features[r].numpy(), counts.asked[r].numpy(), float(world.norm[r]))
        np.testing.assert_allclose(floor(world, counts)[r].numpy(), expected, rtol=1e-8)


def test_predictors_and_their_correlations_are_the_naive_ones():
    world, counts, theta = world_and_counts()
    found, key = predictors(world, counts, theta, 0.7, 3.0), Key(3, (0, 1))
    ranks = correlations(world, counts, theta, 0.7, 3.0, key)
    for r in range(2):
        phi, truth = world.features[r].numpy(), world.theta[r].numpy()
        expected = naive_predictors(phi, counts.asked[r].numpy(), theta[r].numpy(), truth, 0.7, 3.0)
        assert set(found) == set(expected)
        error = np.abs(phi @ (theta[r].numpy() - truth))
        for name, values in expected.items():
            np.testing.assert_allclose(found[name][r].numpy(), values, rtol=1e-8, err_msg=name)
            assert ranks[f"corr_{name}"][r] == pytest.approx(stats.spearmanr(values, error).statistic)
        drawn = expected["oracle"] * np.abs(key.normal(9)[r].numpy())
        assert ranks["corr_gaussian"][r] == pytest.approx(stats.spearmanr(expected["oracle"], drawn).statistic)
        order = np.argsort(expected["width"])
        for number, part in enumerate(np.array_split(order, 10)):
            rms = math.sqrt(np.mean(error[part] ** 2) / np.mean(error**2)) if len(part) else math.nan
            assert ranks[f"decile_{number + 1}"][r] == pytest.approx(rms, nan_ok=True)


def test_where_the_world_starts_is_what_the_network_says_of_its_duels():
    """⟨φ, start⟩ = ⟨∇f_i - ∇f_j, θ0⟩ for every duel, with gradients by automatic differentiation, one at a time."""
    setting, key = Setting(2, 3, width=6), Key(11, (0, 1))
    world = TangentWorld.of(setting, key)
    network, items = setting.network, key.fold_in("world", "mlp")
    initial = network.initial(key.fold_in("network"))
    problem = Problem(TRUTHS["mlp"].beside(network, initial), items, 2, 3, setting.dim, bound=0.5)
    points, _ = problem.everything()
    for r in range(2):
        pulls = []
        for item in range(6):
            theta = tuple(matrix.clone().requires_grad_(True) for matrix in initial)
            gradient = torch.autograd.grad(network.value(theta, points.x)[r, item], theta)
            pulls.append(sum(float((g[r] * w[r]).sum()) for g, w in zip(gradient, initial, strict=True)))
        for duel, (i, j) in enumerate(zip(world.duels.first[r].tolist(), world.duels.second[r].tolist(), strict=True)):
            told = float(world.features[r, duel] @ world.start[r])
            assert told == pytest.approx(pulls[i] - pulls[j], rel=1e-8, abs=1e-10)

"""Quantised engines: torch's own fp8 and int8 kernels generate, the shadow emulates. Healthy and merely noisy engines are never called quantised."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_engines import ROLLOUTS, generate, prompts, rollout, scorer_of, write_dense
from torch import Tensor, nn

from collector.records import Diagnosis, Rollout
from collector.shadow.quantised import CONTROL, SCHEMES, fp8, fp8_blocks, int4_groups, integers, per_row, per_tensor
from diagnosis.bench import Bench
from diagnosis.compete import diagnose
from diagnosis.config import DiagnosisConfig
from diagnosis.prompts import Marks
from diagnosis.quantised import quantization

_spec = importlib.util.spec_from_file_location("klaxon_diagnosis_engines", Path(__file__).parent / "fixtures" / "diagnosis" / "engines.py")
engines = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(engines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dense(tmp_path_factory.mktemp("model"))


def reported(model: nn.Module) -> list[Rollout]:
    return [rollout(f"r{i}", ids_P, generate(model, ids_P, seed=i)) for i, ids_P in enumerate(prompts(ROLLOUTS))]


def judged(folder: Path, rollouts: list[Rollout], **settings: str) -> Diagnosis:
    return diagnose(rollouts, scorer_of(folder, **settings), versions=["1"], config=DiagnosisConfig(), marks=Marks(), floor=lambda _: 0.002)


class NoisyLinear(nn.Module):
    """A linear layer whose output is off by a random share: another kernel's noise, as large as a quantised one's."""

    def __init__(self, layer: nn.Linear, size: float) -> None:
        super().__init__()
        self.layer, self.size = layer, size

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)
        return out * (1 + self.size * torch.randn_like(out))


def noisy(folder: Path, size: float) -> nn.Module:
    torch.manual_seed(7)
    model = engines.loaded(folder)
    for module in list(model.model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, NoisyLinear(child, size))
    return model


def test_a_float8_engine_is_named_with_its_scheme(folder: Path) -> None:
    found = judged(folder, reported(engines.fp8_kernels(folder, torch.float32)))
    assert (found.verdict, found.confident) == ("quantization", True)
    assert found.causes[0].parameters == {"scheme": "fp8"}
    residual = {cause.cause: cause.residual_nats for cause in found.causes}
    assert residual["quantization"] < residual["healthy"] / 3
    assert "--quantization" in found.fix


def test_an_engine_in_float8_and_bfloat16_is_named_though_noise_remains(folder: Path) -> None:
    found = judged(folder, reported(engines.fp8_kernels(folder)))
    assert (found.verdict, found.confident) == ("quantization", True)
    assert any("β = " in text for text in found.causes[0].evidence)


@pytest.mark.parametrize("size", [0.003, 0.03])
def test_noise_as_large_as_a_quantised_engines_is_never_called_quantization(folder: Path, size: float) -> None:
    found = judged(folder, reported(noisy(folder, size)))
    assert found.verdict in ("healthy", "engine_numerics", "unexplained")
    assert not found.confident or found.verdict == "healthy"


@pytest.mark.parametrize("make", [engines.loaded, lambda folder: engines.loaded(folder, torch.bfloat16), lambda folder: noisy(folder, 0.03)])
def test_a_bfloat16_shadow_finds_no_direction_where_nothing_is_quantised(folder: Path, make: Callable[[Path], nn.Module]) -> None:
    """Its own rounding errors are in both differences; only the control keeps β at 0."""
    bench = Bench(reported(make(folder)), scorer_of(folder, body_dtype="bfloat16"), versions=["1"], config=DiagnosisConfig())
    found = quantization(bench)
    assert found is not None and not found.pinned
    assert bench.sheet.residual(bench.view("expected")) - bench.sheet.residual(found.values_N) < DiagnosisConfig().margin_nats


def test_a_healthy_engine_stays_healthy_and_is_never_asked_about_quantization(folder: Path) -> None:
    found = judged(folder, reported(engines.loaded(folder)))
    assert (found.verdict, found.confident) == ("healthy", True)
    assert "quantization" not in [cause.cause for cause in found.causes]


def test_every_scheme_moves_the_logprobs_and_leaves_the_weights_alone(folder: Path) -> None:
    rollouts, scorer = reported(engines.loaded(folder))[:2], scorer_of(folder)
    before = scorer.score(rollouts)
    for name in (*SCHEMES, CONTROL):
        moved = max(float(np.abs(a.views["expected"] - b.views["expected"]).max()) for a, b in zip(before, scorer.quantised(name).score(rollouts), strict=True))
        assert (1e-4 < moved < 5) if name != CONTROL else moved < 0.01, name
    after = scorer.score(rollouts)
    assert all(np.array_equal(a.views["expected"], b.views["expected"]) for a, b in zip(before, after, strict=True))


def test_roundings_keep_what_fits_their_grid_and_err_by_half_a_step_at_most() -> None:
    values = torch.randn(130, 200, generator=torch.Generator().manual_seed(2))
    assert (integers(values, per_row(values)) - values).abs().max() <= 0.5001 * values.abs().amax() / 127
    assert ((fp8(values, per_tensor(values)) - values).abs() <= values.abs() / 16 + 1e-4).all()
    assert fp8_blocks(values).shape == values.shape and ((fp8_blocks(values) - values).abs() <= values.abs() / 16 + 1e-4).all()
    assert (int4_groups(values) - values).abs().max() <= (values.max() - values.min()) / 15
    grid = torch.arange(-127, 128).float()[None]
    assert torch.equal(integers(grid, per_row(grid)), grid)


def test_a_scorer_that_cannot_emulate_is_not_asked(folder: Path) -> None:
    class Plain:
        def __init__(self) -> None:
            self.inner = scorer_of(folder)
            self.config = self.inner.config

        def score(self, *args: object, **kwargs: object) -> object:
            return self.inner.score(*args, **kwargs)

    assert quantization(Bench(reported(engines.loaded(folder)), Plain(), versions=["1"], config=DiagnosisConfig())) is None

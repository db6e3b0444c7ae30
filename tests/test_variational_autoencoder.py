"""The variational autoencoder: it samples where it is trained, and only there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fits import untrained
from strategies import noise, randomised
from torch.distributions import Normal, kl_divergence

from detectors.runtime import Runtime
from detectors.training.export import step_graph
from detectors.training.fit import FitOptions, chunks_over, fit, training_loss
from detectors.training.networks import VariationalAutoencoder
from detectors.training.networks.variational_autoencoder import BETA, LOG_VARIANCE, divergence
from detectors.training.stretches import Stretches
from pruning.groups import dropped
from pruning.importance import idle
from pruning.surgery import remove

WIDTHS = {"encoder": 11, "latent": 3, "decoder": 7}


def network(**options: int) -> VariationalAutoencoder:
    """A small one in float64 with random weights."""
    return randomised(VariationalAutoencoder(2, 5, WIDTHS, **options), 1)


def test_the_divergence_is_that_of_two_gaussians() -> None:
    """Latent by latent, from the standard normal."""
    mean, log_variance = noise(4, 6, seed=1), noise(4, 6, seed=2) * 3

    wanted = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(torch.zeros(()), torch.ones(())))

    assert torch.allclose(divergence(mean, log_variance), wanted, rtol=1e-12, atol=1e-12)


def test_the_loss_of_a_window_is_its_divergence_by_value() -> None:
    """Summed over latents, on the scale of a mean squared residual; [B, T]."""
    vae = network()
    points = noise(3, 8, 2)
    windows, _ = vae.windows(points, vae.fresh(3))
    encoded = torch.relu(vae.encoder(windows.flatten(2)))
    latents = Normal(vae.mean(encoded), (0.5 * vae.log_variance(encoded).clamp(-LOG_VARIANCE, LOG_VARIANCE)).exp())
    wanted = BETA * kl_divergence(latents, Normal(torch.zeros(()), torch.ones(()))).sum(dim=-1) / (5 * 2)

    loss = vae(points, vae.fresh(3)).loss

    assert loss.shape == (3, 8)
    assert torch.allclose(loss, wanted, rtol=1e-12, atol=1e-12)


def test_scoring_is_deterministic_from_the_start() -> None:
    """A new network, one that was rebuilt and one that was trained on decode the mean and draw no random number."""
    networks = (network(), network().resized({"encoder": 4}).double(), network().train().eval())
    points = noise(2, 9, 2)
    before = torch.random.get_rng_state()

    for vae in networks:
        first, second = (vae(points, vae.fresh(2)) for _ in range(2))
        assert torch.equal(first.residual, second.residual)
        assert torch.equal(first.loss, second.loss)

    assert torch.equal(torch.random.get_rng_state(), before)


def test_training_samples_around_the_mean() -> None:
    """Reparameterised: other numbers each time, the same for the same seed, gradients in both heads."""
    vae = network().train()
    points = noise(64, 1, 2)
    counted = torch.ones(64, 1, dtype=torch.bool)

    losses = [training_loss(vae(points, vae.fresh(64)), counted) for _ in range(2)]
    again = []
    for _ in range(2):
        torch.manual_seed(5)
        again.append(training_loss(vae(points, vae.fresh(64)), counted))
    losses[0].backward()

    assert losses[0] != losses[1]
    assert again[0] == again[1]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in vae.parameters())


def test_samples_have_the_variance_that_is_said() -> None:
    """What the decoder reads is Gaussian with the encoder's mean and variance."""
    vae = network().train()
    points = noise(1, 1, 2).expand(20_000, 1, 2)
    encoded = torch.relu(vae.encoder(vae.windows(points[:1], vae.fresh(1))[0].flatten(2)))
    mean, log_variance = vae.mean(encoded)[0, 0], vae.log_variance(encoded)[0, 0]
    torch.manual_seed(0)

    seen = vae(points, vae.fresh(20_000)).activations["latent"][:, 0]

    spread = (0.5 * log_variance).exp().detach()
    assert torch.allclose(seen.mean(dim=0), mean, rtol=0, atol=5 * float(spread.max()) / 20_000**0.5)
    assert torch.allclose(seen.std(dim=0), spread, rtol=0.03, atol=0)


def test_a_wild_variance_stays_finite() -> None:
    """Far off the training data the log variance is bounded, so that the loss is too."""
    vae = network().train()

    out = vae(noise(4, 6, 2) * 1e6, vae.fresh(4))

    assert torch.isfinite(out.loss).all()
    assert torch.isfinite(out.residual).all()


def test_the_latents_are_protected_and_few() -> None:
    """They decide what the detector can fail to reconstruct; at most a quarter of the window's numbers by default."""
    assert [group.name for group in network().groups() if group.protected] == ["latent"]
    assert VariationalAutoencoder.dense(1, {"window": 8}).units["latent"] == 2
    assert VariationalAutoencoder.dense(3, {}).units == {"encoder": 256, "latent": 8, "decoder": 256}


def test_the_divergence_of_each_latent_is_told() -> None:
    """Beside the units' outputs, in nats; the loss is their sum."""
    vae = network()

    out = vae(noise(3, 8, 2), vae.fresh(3))

    diverged = out.activations["latent/divergence"]
    assert diverged.shape == (3, 8, 3)
    assert torch.allclose(diverged.sum(dim=-1) * BETA / (5 * 2), out.loss, rtol=1e-12, atol=1e-12)


def test_latents_that_the_fit_has_switched_off_can_leave() -> None:
    """Sixteen latents for a sine, which has two: the others diverge by next to nothing, and nobody misses them."""
    rng = np.random.default_rng(0)
    rows = (np.sin(np.arange(900) / 5)[:, None] + 0.1 * rng.normal(size=(900, 1))).astype(np.float32)
    data, options = Stretches.of([rows]), {"window": 8, "width": 32, "latent": 16}
    how = FitOptions(updates=1200)
    detector = fit("variational_autoencoder", data, ("level",), seed=0, options=options, how=how)
    chunks = chunks_over(data, detector.scaler, detector.network, 0)
    raw = rows[None].copy()
    raw[:, 500:520] += 2

    gone = idle(detector.network, chunks)["latent"]

    used = dropped(gone, 16)
    assert 2 <= len(used) < 8
    score = detector.trace(raw).score
    judged = np.isfinite(score)

    def moved(keep: torch.Tensor) -> float:
        smaller = detector.with_network(remove(detector.network, {"latent": keep}))
        return float(np.abs(smaller.trace(raw).score - score)[judged].mean())

    assert score[judged].max() > 5
    assert moved(used) < 0.05
    assert all(moved(dropped(used[i : i + 1], 16)) > 1 for i in range(2))


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("n_features", [1, 3])
def test_the_exported_graph_gives_the_scores_of_the_network(n_features: int, stride: int) -> None:
    """Step by step from a fresh state, with a window that is carried from step to step."""
    detector = untrained("variational_autoencoder", n_features, stride=stride)
    raw = np.random.default_rng(1).normal(3.0, 3.0, (4, 60, n_features)).astype(np.float32)
    wanted = detector.trace(raw)

    runtime = Runtime(step_graph(detector))
    state, steps = runtime.fresh(4), []
    for t in range(0, 60, stride):
        step = runtime.step(raw[:, t] if stride == 1 else raw[:, t : t + stride], state)
        state = step.state
        steps.append(step)

    scored = np.isfinite(wanted.score[:, stride - 1 :: stride])
    assert scored.any()
    score = np.stack([step.score for step in steps], axis=1)
    contribution = np.stack([step.contribution for step in steps], axis=1)
    np.testing.assert_allclose(score[scored], wanted.score[:, stride - 1 :: stride][scored], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        contribution[scored], wanted.contribution[:, stride - 1 :: stride][scored], rtol=1e-3, atol=1e-5
    )

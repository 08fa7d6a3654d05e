"""Hyperparameters by descent: on quadratics whose best ones are known, and where it has to stop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptive_jax as aj

CURVATURES = jnp.array([1.0, 4.0])


def trained(tx, steps=2, curvatures=CURVATURES):
    """The distance that is left after so many steps."""
    w = jnp.array([1.0, -2.0], curvatures.dtype)
    state = tx.init(w)
    for _ in range(steps):
        updates, state = tx.update(curvatures * w, state, w)
        w = optax.apply_updates(w, updates)
    return jnp.sum(w**2) / 2


def test_the_best_rate_of_a_step_is_known():
    """Σ(1-ηλ)²θ² is least for η = Σλθ²/Σλ²θ²."""
    tuned = aj.tune(lambda tx: trained(tx, 1), aj.sgd(0.001), 60)
    assert tuned.tx.data.rules[-1].learning_rate == pytest.approx(17 / 65, rel=1e-3)
    assert type(tuned.tx.data.rules[-1].learning_rate) is float
    assert tuned.loss == min(tuned.losses)
    assert tuned.stopped is None
    np.testing.assert_allclose(tuned.values["learning_rate"][0], 0.001, rtol=1e-5)
    moves = np.abs(np.diff(np.log(tuned.values["learning_rate"])))
    assert moves.max() <= 0.3 * 1.001
    assert repr(tuned).startswith("sgd(learning_rate=0.26")


def test_rate_and_momentum_for_which_two_steps_are_all():
    """1 - (2+γ)ηλ + η²λ² is 0 at both curvatures, 1 and 4, for η = γ = ½."""
    start = aj.sgd(0.2, momentum=0.2)
    tuned = aj.tune(trained, start, 200, rate=0.1)
    assert tuned.loss < 1e-4 * tuned.losses[0]
    assert tuned.values["learning_rate"][-1] == pytest.approx(0.5, rel=0.01)
    assert tuned.values["decay"][-1] == pytest.approx(0.5, rel=0.02)
    # One alone, the other as it was.
    one = aj.tune(trained, start, 20, only=("learning_rate",))
    assert list(one.values) == ["learning_rate"]
    assert "momentum=0.2" in repr(one.tx)


@pytest.mark.parametrize("forward", [False, True])
def test_slopes_are_differences(forward):
    """By log η, by log(1-β), of Adam; ε is there too, and a decay that is 0 stays."""
    found = aj.tune(trained, aj.adam(0.1, weight_decay=0.0), 1, forward=forward)
    assert list(found.values) == ["b1", "b2", "eps", "learning_rate"]
    with jax.enable_x64(True):

        def loss(rate, b1, b2):
            return float(trained(aj.adam(rate, b1, b2), curvatures=jnp.array([1.0, 4.0])))

        h = 1e-5
        up, down = np.exp(h), np.exp(-h)
        differences = {
            "learning_rate": loss(0.1 * up, 0.9, 0.999) - loss(0.1 * down, 0.9, 0.999),
            "b1": loss(0.1, 1 - 0.1 * up, 0.999) - loss(0.1, 1 - 0.1 * down, 0.999),
            "b2": loss(0.1, 0.9, 1 - 1e-3 * up) - loss(0.1, 0.9, 1 - 1e-3 * down),
        }
    for name, difference in differences.items():
        np.testing.assert_allclose(
            found.slopes[name][0], difference / (2 * h), rtol=2e-3, atol=1e-6, err_msg=name
        )


def test_numbers_of_schedules_and_trees_are_tuned():
    schedule = aj.schedules.linear_schedule(0.01, 0.001, 2)
    tuned = aj.tune(trained, aj.sgd(schedule), 20)
    assert "learning_rate.init_value" in tuned.values
    assert tuned.loss < tuned.losses[0]

    def of_two(tx):
        params = {"a": jnp.ones(()), "b": jnp.ones(())}
        grads = {"a": params["a"], "b": 10 * params["b"]}
        updates, _ = tx.update(grads, tx.init(params), params)
        return sum(x**2 for x in jax.tree.leaves(optax.apply_updates(params, updates)))

    tuned = aj.tune(of_two, aj.sgd({"a": 0.05, "b": 0.05}), 60, only=["learning_rate"])
    found = tuned.tx.data.rules[-1].learning_rate
    assert found["a"] == pytest.approx(1.0, rel=0.02)
    assert found["b"] == pytest.approx(0.1, rel=0.02)


def test_it_stops_where_numbers_end_and_returns_the_best():
    """What is descended grows with the steps, without end, until it is no number."""
    tuned = aj.tune(lambda tx: -trained(tx, 30), aj.sgd(1.0), 60)
    assert len(tuned.losses) < 60
    assert "learning_rate" in str(tuned.stopped)
    assert "in step" in repr(tuned)
    assert np.isfinite(tuned.loss)
    assert tuned.loss == np.nanmin(np.where(np.isfinite(tuned.losses), tuned.losses, np.nan))
    with pytest.raises(ValueError, match=r"gives nan with learning_rate=1e\+06, to begin with"):
        aj.tune(lambda tx: trained(tx, 30), aj.sgd(1e6), 3)

    def kinked(tx):  # The root has no derivative at 0.
        return trained(tx, 1) + jnp.sqrt(0 * trained(tx, 1))

    with_slope = aj.tune(kinked, aj.sgd(0.01), 3)
    assert "derivative by learning_rate is not finite" in str(with_slope.stopped)
    assert with_slope.tx.data.rules[-1].learning_rate == 0.01


def test_what_is_refused():
    with pytest.raises(TypeError, match="must be a function of an optimizer"):
        aj.tune(aj.sgd(0.1), trained, 3)
    with pytest.raises(TypeError, match="takes an optimizer of this library"):
        aj.tune(trained, optax.sgd(0.1), 3)
    with pytest.raises(ValueError, match="steps=0 must be a whole number"):
        aj.tune(trained, aj.sgd(0.1), 0)
    with pytest.raises(ValueError, match="rate=0 must be a finite number above 0"):
        aj.tune(trained, aj.sgd(0.1), 3, rate=0)
    with pytest.raises(TypeError, match="only='b1' is a string"):
        aj.tune(trained, aj.adam(0.1), 3, only="b1")
    with pytest.raises(
        ValueError, match=r"'b3' is not known. What can be tuned: b1, b2, eps, learn"
    ):
        aj.tune(trained, aj.adam(0.1), 3, only=("b3",))
    with pytest.raises(ValueError, match="'eps' stays where it is, at an end"):
        aj.tune(trained, aj.adam(0.1, eps=0.0), 3, only=("eps",))
    with pytest.raises(ValueError, match="no hyperparameter that can be tuned"):
        aj.tune(trained, aj.sgd(0.0), 3)
    with pytest.raises(TypeError, match="must return one real number"):
        aj.tune(lambda tx: jnp.ones(2), aj.sgd(0.1), 3)


def test_pictures():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    tuned = aj.tune(lambda tx: trained(tx, 1), aj.sgd(0.001), 5)
    assert tuned.plot(ax=Figure().subplots()).get_ylabel() == "loss"
    assert tuned.plot("learning_rate", ax=Figure().subplots()).get_ylabel() == "learning_rate"
    with pytest.raises(ValueError, match="name='eta' is not known"):
        tuned.plot("eta")

import pytest

from mapseg.config import (
    InferConfig,
    ModelConfig,
    PredictConfig,
    TrainConfig,
    from_json,
    identity_conflicts,
    to_json,
)


@pytest.mark.parametrize("kind", [ModelConfig, TrainConfig, PredictConfig])
def test_configs_survive_json(kind):
    assert from_json(kind, to_json(kind()), "x") == kind()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (ModelConfig, {"encoder": "vgg"}),
        (ModelConfig, {"output_stride": 4}),
        (ModelConfig, {"dropout": 1.0}),
        (TrainConfig, {"steps": 0}),
        (TrainConfig, {"min_scale": 2.0, "max_scale": 1.0}),
        (TrainConfig, {"learning_rate": -1.0}),
        (PredictConfig, {"scale": "big"}),
        (PredictConfig, {"scale": "0"}),
        (PredictConfig, {"scales": "0.5,,1"}),
        (PredictConfig, {"scales": "1,-2"}),
        (InferConfig, {"frames": "d", "out_dir": "o", "outputs": "ids,film"}),
        (InferConfig, {"out_dir": "o"}),
    ],
)
def test_bad_values_name_the_option(kind, options):
    with pytest.raises(ValueError, match="must be") as caught:
        kind(**options)
    named = options.keys() if options.keys() != {"out_dir"} else {"frames"}
    assert any(name in str(caught.value) for name in named)


def test_the_output_stride_of_ddrnet_is_8():
    with pytest.raises(ValueError, match=r"must be 8 .*; got 16\. Remedy: --output_stride=8"):
        ModelConfig(encoder="ddrnet23_slim")
    ModelConfig(encoder="ddrnet23_slim", output_stride=8)


def test_an_option_of_a_loss_that_is_not_used_is_refused():
    with pytest.raises(
        ValueError, match=r"ohem_share must be used with a loss of ohem; got loss=ce\+lovasz"
    ):
        TrainConfig(ohem_share=0.1)
    TrainConfig(ohem_share=0.1, loss="lovasz+ohem")


def test_removed_options_of_old_runs_are_ignored():
    stored = {"steps": 5, "plot_steps": 80, "steps_per_call": 3}
    assert from_json(TrainConfig, stored, "config.json") == TrainConfig(steps=5)


def test_an_unknown_stored_option_is_refused():
    with pytest.raises(ValueError, match=r"config\.json.*turbo"):
        from_json(TrainConfig, {"turbo": True}, "config.json")


def test_an_older_config_takes_defaults_for_new_options():
    assert from_json(TrainConfig, {"steps": 5}, "x") == TrainConfig(steps=5)


def test_identity_conflicts_name_both_values():
    stored = TrainConfig(seed=1, steps=10)
    assert identity_conflicts(stored, {"seed": 1, "steps": 20}) == []
    (conflict,) = identity_conflicts(stored, {"seed": 2})
    assert "seed=1" in conflict
    assert "seed=2" in conflict

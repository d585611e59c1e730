"""Every problem in a search is reported in one message that quotes the offending value."""

import pytest

from ticket_search.config.base import validate
from ticket_search.config.loading import load_search
from ticket_search.config.settings import ResourcesSpec
from ticket_search.errors import SpecError

GOOD = """\
name: good
dataset: {name: digits, validation: 300}
model: {name: lenet_16}
training:
  optimizer: {name: adam, lr: 2e-3}
  batch_size: 64
  iterations: 600
  evaluate_every: 20
space:
  pruning_rate: {low: 0.2, high: 0.6}
  rewind_iteration: [0, 100]
seeds: [0, 1]
search: {trials: 4}
"""


@pytest.fixture
def message(tmp_path):
    """A function that loads an invalid search and returns the error message, with FILE in place of the file's path."""
    path = tmp_path / "space.yaml"

    def refused(*settings, text=GOOD):
        path.write_text(text)
        with pytest.raises(SpecError) as error:
            load_search(path, settings)
        assert error.value.exit_code == 2
        return str(error.value).replace(f"{path}", "FILE")

    return refused


def test_the_good_search_is_accepted(tmp_path):
    (tmp_path / "good.yaml").write_text(GOOD)
    assert load_search(tmp_path / "good.yaml").name == "good"


PRUNING_FIELDS = (
    "pruning_rate, target_densities, strategy, criterion, rewind_iteration, retrain, reinit_kept, reinit_pruned, "
    "conv_layer_rate, output_layer_rate, min_density, max_levels, early_bird, ticket, ticket_weights, "
    "dataset.*, model.*, training.*, pruning.*"
)
NOT_A_LENGTH = "is not a training duration: give"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        # unknown keys
        (
            "training.batchsize=3",
            "training.batchsize: unknown key 'batchsize' (did you mean 'batch_size'?); "
            "known: batch_size, evaluate_every, executor, iterations, optimizer, precision, schedule",
        ),
        (
            "foo=3",
            "foo: unknown key 'foo'; known: controls, data_dir, dataset, model, name, points, pruning, resources, "
            "search, seeds, space, store, task, training",
        ),
        (
            "space.prunning_rate=[0.2]",
            f"unknown field to search 'prunning_rate' (did you mean 'pruning_rate'?); known: {PRUNING_FIELDS}",
        ),
        ("space.seed=[1]", f"unknown field to search 'seed'; known: {PRUNING_FIELDS}"),
        ("space.training=[1]", "unknown field to search 'training'"),
        ("space.training.optimizr.lr=[0.1]", "training.optimizr: unknown key 'optimizr' (did you mean 'optimizer'?)"),
        ("space.pruning_rate={low: 0.2, high: 0.5, stp: 0.1}", "unknown key 'stp' (did you mean 'step'?)"),
        (
            "search.early_stopping.collaps=1",
            "search.early_stopping.collaps: unknown key 'collaps' (did you mean 'collapse'?)",
        ),
        # wrong types
        ("model.name=3", "model.name: 3 is not valid: input should be a valid string"),
        ("training.batch_size=1.5", "training.batch_size: 1.5 is not valid: input should be a valid integer"),
        ("training.batch_size=true", "training.batch_size: True is not valid: input should be a valid integer"),
        ("training.optimizer.lr=fast", "training.optimizer.lr: 'fast' is not valid: input should be a valid number"),
        ("training.optimizer=3", "training.optimizer: 3 is not valid"),
        ("space=3", "space: 3 is not valid"),
        ("seeds=3", "seeds: 3 is not valid"),
        ("seeds=[a]", "seeds.0: 'a' is not valid: input should be a valid integer"),
        ("space.pruning_rate=0.2", "pruning_rate: 0.2 is neither a list of values nor a range {low: ..., high: ...}"),
        ("space.pruning_rate={low: a, high: 0.5}", "pruning_rate: low: 'a' is not valid"),
        ("space.pruning_rate={low: 0.2}", "pruning_rate: high: is missing"),
        # training lengths
        (
            "training.iterations=soon",
            f"training.iterations: 'soon' {NOT_A_LENGTH} iterations (20000) or epochs ('20ep')",
        ),
        ("training.iterations=0ep", f"training.iterations: '0ep' {NOT_A_LENGTH} iterations (20000) or epochs ('20ep')"),
        ("training.iterations=0", f"training.iterations: 0 {NOT_A_LENGTH} 1 to 1000000000 iterations"),
        ("training.iterations=-3", f"training.iterations: -3 {NOT_A_LENGTH} 1 to 1000000000 iterations"),
        ("training.iterations=1.5", f"training.iterations: 1.5 {NOT_A_LENGTH} iterations (20000)"),
        ("training.iterations=true", f"training.iterations: True {NOT_A_LENGTH} iterations (20000)"),
        (
            "training.schedule={name: step, milestones: [-3]}",
            f"training.schedule.milestones.0: -3 {NOT_A_LENGTH} 0 to 1000000000 iterations",
        ),
        # out of range
        ("training.batch_size=0", "training.batch_size: 0 is not valid: input should be greater than or equal to 1"),
        ("training.optimizer.lr=-1", "training.optimizer.lr: -1 is not valid: input should be greater than 0"),
        ("training.optimizer.lr=.nan", "training.optimizer.lr: nan is not valid: input should be a finite number"),
        ("training.optimizer.lr=.inf", "training.optimizer.lr: inf is not valid: input should be a finite number"),
        ("pruning.min_density=0", "pruning.min_density: 0 is not valid: input should be greater than 0"),
        ("pruning.output_layer_rate=1.5", "pruning.output_layer_rate: 1.5 is not valid"),
        ("pruning.max_levels=0", "pruning.max_levels: 0 is not valid"),
        ("search.trials=0", "search.trials: 0 is not valid"),
        ("search.tolerance=1", "search.tolerance: 1 is not valid: input should be less than 1"),
        ("search.early_stopping.patience=0", "search.early_stopping.patience: 0 is not valid"),
        ("resources.cpus=0", "resources.cpus: 0 is not valid"),
        ("seeds=[-1]", "seeds.0: -1 is not valid"),
        ("space.pruning_rate=[0.2, 1.5]", "pruning.pruning_rate: 1.5 is not valid: input should be less than 1"),
        ("space.pruning_rate={low: 0.2, high: 1.5}", "pruning.pruning_rate: 1.5 is not valid"),
        ("space.training.optimizer.lr={low: -1, high: 1}", "training.optimizer.lr: -1 is not valid"),
        # ranges and lists
        ("space.pruning_rate={low: 0.6, high: 0.2}", "pruning_rate: low 0.6 must be less than high 0.2"),
        ("space.pruning_rate={low: 0.2, high: 0.2}", "pruning_rate: low 0.2 must be less than high 0.2"),
        ("space.pruning_rate={low: 0.2, high: 0.5, step: 0}", "pruning_rate: step 0 must be at least 1e-09"),
        (
            "space.rewind_iteration={low: 0, high: 50, log: true}",
            "a log range needs a low above 0 and no step, but low is 0",
        ),
        ("space.pruning_rate=[]", "pruning_rate: the list [] is empty; give at least one value"),
        (
            "space.pruning_rate=[0.2, 0.3, 0.2]",
            "pruning_rate: [0.2, 0.3, 0.2] contains duplicates; give each value only once",
        ),
        (
            "space.trajectory.pruning_rate=[0.3]",
            "space.pruning_rate and space.trajectory.pruning_rate are the same field",
        ),
        (
            "space.pruning.pruning_rate=[0.3]",
            "space.pruning_rate and space.pruning.pruning_rate are the same field",
        ),
        ("seeds=[]", "seeds: [] is not valid"),
        ("seeds=[0, 1, 0]", "seeds: [0, 1, 0] contains duplicates; give each seed only once"),
        # incompatible values
        (
            "space.rewind_iteration=[0, 600]",
            "pruning.rewind_iteration: 600 is not before the end of training at iteration 600; give 0 to 599",
        ),
        (
            "space.rewind_iteration={low: 0, high: 700}",
            "pruning.rewind_iteration: 700 is not before the end of training at iteration 600",
        ),
        (
            "space.training.iterations=[600, 100]",
            "pruning.rewind_iteration: 100 is not before the end of training at iteration 100",
        ),
        ("training.optimizer.momentum=0.9", "training.optimizer: momentum 0.9 is only for sgd; adam has no momentum"),
        ("training.schedule={name: step}", "training.schedule: milestones [] do not go with schedule 'step'"),
        ("training.schedule.milestones=[3]", "training.schedule: milestones [3] do not go with schedule 'constant'"),
        ("dataset.path=x", "dataset: path 'x' does not go with dataset 'digits'"),
        ("dataset.name=parquet", "dataset: path None does not go with dataset 'parquet'"),
        (
            "dataset.normalize={mean: [0], std: [0]}",
            "dataset.normalize: mean [0.0] and std [0.0] must each have one entry",
        ),
        ("search.trials=null", "search: trials may be null only for the grid sampler; 'tpe' needs a number of trials"),
        ("search.sampler=grid", "space.pruning_rate: a grid needs a list, or a range with a step"),
        ("resources.gpus=0.3", "resources: gpus 0.3 is not 1/n, so shares would not fill a GPU; give 0.3333"),
        ("resources.gpus=1.5", "resources: gpus 1.5 is neither a share 1/n nor a whole number; give 2"),
        # unknown names
        (
            "dataset.name=mnst",
            "dataset.name: unknown dataset 'mnst' (did you mean 'mnist'?); "
            "known: digits, mnist, fashion_mnist, cifar10, parquet, package.module:function",
        ),
        (
            "model.name=resnet",
            "model.name: unknown model 'resnet' (did you mean 'resnet20'?); "
            "known: lenet_A_B[_C...], mlp_A_B[_C...], conv2, conv4, conv6, vgg16, vgg19, resnet20, "
            "resnet_N (N = 8, 14, 20, ...), torchvision/<name>, package.module:function",
        ),
        ("model.name=lenet_0", "model.name: 'lenet_0': a layer must have 1 to 999999 units"),
        ("model.name=resnet18", "'resnet18': a ResNet for CIFAR has 6n + 2 layers: 8, 14, 20, ...; give 'resnet20'"),
        ("model.name=resnet_2", "'resnet_2': a ResNet for CIFAR has 6n + 2 layers: 8, 14, 20, ...; give 'resnet8'"),
        (
            "model.init=xavier",
            "model.init: 'xavier' is not valid: input should be 'kaiming_normal', 'kaiming_uniform', 'glorot_normal', "
            "'glorot_uniform' or 'orthogonal'",
        ),
        ("training.precision=fp16", "training.precision: 'fp16' is not valid: input should be 'fp32' or 'bf16'"),
        (
            "pruning.target_densities=[0.5, 0.2, 0.3]",
            "pruning.target_densities: [0.5, 0.2, 0.3] does not decrease: 0.3 follows 0.2; "
            "give decreasing densities, one for each level",
        ),
        ("pruning.target_densities=[0.5, 0.5]", "[0.5, 0.5] does not decrease: 0.5 follows 0.5"),
        ("pruning.target_densities=1.5", "pruning.target_densities.0: 1.5 is not valid"),
        ("pruning.target_densities=[]", "pruning.target_densities: [] is not valid"),
        (
            "pruning.retrain=rewind",
            "'rewind' is not valid: input should be 'weights', 'learning_rate' or 'finetune'",
        ),
        (
            "pruning={target_densities: 0.1, output_layer_rate: 0.5}",
            "output_layer_rate 0.5 scales pruning_rate, which has no effect with target_densities; "
            "set pruning.output_layer_rate to 1.0, or omit target_densities",
        ),
        (
            "space.target_densities=[[0.5], 0.5]",
            "space.target_densities: [0.5] and 0.5 are the same value; give only one",
        ),
        (
            "space.model.name=[resnet8, resnet_8]",
            "space.model.name: 'resnet8' and 'resnet_8' are the same value; give only one",
        ),
        ("controls={kinds: [random_mask], levels: []}", "controls.levels: [] is not valid"),
        ("controls={kinds: [random]}", "'random_reinit', 'random_mask' or 'shuffled_mask'"),
        (
            "controls={kinds: [random_mask, random_mask]}",
            "['random_mask', 'random_mask'] contains duplicates",
        ),
        (
            "pruning={criterion: snip, retrain: finetune}",
            "criterion 'snip' needs untrained weights, but retrain 'finetune' starts from trained weights; "
            "set criterion to 'magnitude', or retrain to 'weights'",
        ),
        (
            "pruning={retrain: finetune, reinit_kept: sign}",
            "reinit_kept 'sign' needs untrained weights, but retrain 'finetune' starts from trained weights; "
            "set reinit_kept to 'rewind', or retrain to 'weights'",
        ),
        (
            "pruning={retrain: learning_rate, reinit_pruned: initial}",
            "reinit_pruned 'initial' needs untrained weights, but retrain 'learning_rate' starts from trained weights; "
            "set reinit_pruned to 'zero', or retrain to 'weights'",
        ),
        (
            "pruning.strategy=globl",
            "pruning.strategy: 'globl' is not valid: input should be 'layerwise' or 'global'",
        ),
        (
            "space.strategy=[global, globl]",
            "pruning.strategy: 'globl' is not valid: input should be 'layerwise' or 'global'",
        ),
        (
            "pruning.criterion=size",
            "pruning.criterion: 'size' is not valid: input should be 'magnitude', 'random', 'large_final', "
            "'magnitude_increase', 'movement', 'large_init', 'small_final', 'snip', 'grasp' or 'synflow'",
        ),
        (
            "training.optimizer.name=adamw",
            "training.optimizer.name: 'adamw' is not valid: input should be 'adam' or 'sgd'",
        ),
        (
            "search.sampler=bayes",
            "search.sampler: 'bayes' is not valid: input should be 'tpe', 'random', 'grid' or 'nsga2'",
        ),
        ("name=a/b", "name: 'a/b' cannot name a directory"),
        ("name=..", "name: '..' cannot name a directory"),
    ],
)
def test_refused(message, setting, expected):
    assert expected in message(setting)
    assert message(setting).startswith("FILE with --set: ")
    assert message(setting).count("\n") == 0


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("noequals", "--set 'noequals' is not KEY=VALUE; for example --set training.iterations=500"),
        ("=3", "--set '=3' is not KEY=VALUE; for example --set training.iterations=500"),
        (
            "training.optimizer.lr=[",
            "--set training.optimizer.lr, line 1, column 2: not valid YAML: "
            "expected the node content, but found '<stream end>'",
        ),
    ],
)
def test_a_malformed_setting_is_refused(message, setting, expected):
    assert message(setting) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1,\nb: }", "FILE, line 2, column 4: not valid YAML: expected the node content, but found '}'"),
        (
            GOOD + "\tx: 3\n",
            "FILE, line 14, column 1: not valid YAML: found character '\\t' that cannot start any token",
        ),
        ("- a", "FILE: a search space is a mapping of keys to values, not ['a']"),
        ("", "FILE: a search space is a mapping of keys to values, not None"),
        (GOOD.replace("seeds: [0, 1]\n", ""), "FILE: seeds: is missing"),
    ],
)
def test_a_malformed_file(message, text, expected):
    assert message(text=text) == expected


def test_a_missing_file(tmp_path):
    with pytest.raises(SpecError, match=r"cannot read the search space '.*absent.yaml': .*No such file"):
        load_search(tmp_path / "absent.yaml")


def test_a_binary_file(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="cannot read the search space"):
        load_search(tmp_path / "x.yaml")


def test_each_problem_is_one_line(message):
    assert message("model.name=3", "training.batch_size=0", "foo=1").splitlines() == [
        "FILE with --set: model.name: 3 is not valid: input should be a valid string",
        "FILE with --set: training.batch_size: 0 is not valid: input should be greater than or equal to 1",
        "FILE with --set: foo: unknown key 'foo'; known: controls, data_dir, dataset, model, name, points, pruning, "
        "resources, search, seeds, space, store, task, training",
    ]


def test_two_incompatible_fields_are_found_before_the_start(search):
    """Each value is valid alongside the first value of every other field; only adam with momentum is invalid."""
    with pytest.raises(SpecError, match=r"momentum 0\.9 is only for sgd"):
        search(
            {
                "training.optimizer.name": ["sgd", "adam"],
                "training.optimizer.momentum": [0.0, 0.9],
                "pruning_rate": {"low": 0.1, "high": 0.5},
            }
        )


def test_an_integer_field_cannot_have_a_fractional_step(search):
    with pytest.raises(SpecError, match=r"0\.0 is not valid: write 0, not 0\.0"):
        search({"rewind_iteration": {"low": 0, "high": 20, "step": 0.5}, "pruning_rate": {"low": 0.1, "high": 0.5}})


@pytest.mark.parametrize(
    ("share", "right"), [(0.3334, "0.3333"), (0.1667, "0.1666"), (0.3, "0.3333"), (0.17, "0.1666")]
)
def test_gpu_shares_that_would_not_pack(share, right):
    with pytest.raises(SpecError, match=rf"gpus {share} is not 1/n, so shares would not fill a GPU; give {right}"):
        validate(ResourcesSpec, {"gpus": share})


@pytest.mark.parametrize("share", [0.0, 1.0, 2.0, 0.5, 0.25, 0.3333, 0.1666, 0.125, 0.1, 0.01])
def test_gpu_shares_that_pack(share):
    assert validate(ResourcesSpec, {"gpus": share}).gpus == share


@pytest.mark.parametrize("step", [1e-7, 1e-9])
def test_a_step_that_makes_too_many_values_is_refused_at_once(search, step):
    with pytest.raises(SpecError, match=rf"step {step} makes \d+ values, but at most 1000000 are allowed"):
        search({"pruning_rate": {"low": 0.1, "high": 0.5, "step": step}})


def test_a_very_wide_range_of_integers_is_counted_not_listed(search):
    assert search({"dataset.split_seed": {"low": 0, "high": 2**32 - 1}}).size == 2**32


def test_seeds_fit_their_column(search):
    assert search({"pruning_rate": [0.5]}, seeds=(2**63 - 1,)).seeds == (2**63 - 1,)
    with pytest.raises(SpecError, match=r"9223372036854775808 is not valid"):
        search({"pruning_rate": [0.5]}, seeds=(2**63,))


def test_a_merge_key_is_merged(tmp_path):
    from ticket_search.config.loading import parse_yaml

    assert parse_yaml("a: &a {x: 1}\nb:\n  <<: *a\n  y: 2\n", "f") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}}
    chained = "a: &a {x: 0}\nb: {c: &c {<<: *a, x: 1}}\nd: {<<: *c}\n"
    assert parse_yaml(chained, "f") == {"a": {"x": 0}, "b": {"c": {"x": 1}}, "d": {"x": 1}}
    with pytest.raises(SpecError, match='f, line 2, column 1: not valid YAML: a second key "a"'):
        parse_yaml("a: 1\na: 2\n", "f")

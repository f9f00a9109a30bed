"""No field of accelerate's configuration changes a result: each is followed, refused, pinned or not read.

The two tables name every option of `accelerate launch` and every variable that accelerate reads, so that a new
version of accelerate with a new one fails here.
"""

import re
from pathlib import Path

import accelerate
import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_simple_launcher_cmd_env

from launcher.engines.base import make_accelerator
from launcher.engines.data_parallel import DataParallel
from launcher.planning.accelerate_config import with_accelerate_config
from models.prepared import prepare_model
from recipes.errors import UserError
from recipes.load import load

# What happens with an option of `accelerate launch`.
LAUNCH = "it decides which processes start where; the cut of the batch follows their number"
TPU = "only the launcher for TPUs reads it, which needs torch_xla"
FOLLOWED = "the recipe follows it where it says auto, and is refused where it contradicts it"
PINNED = "the engine sets it itself"
REFUSED = "refused in one sentence"
UNREAD = "only accelerate's own use of DeepSpeed reads it, and the Zero engine calls DeepSpeed itself"
LOGGING = "it changes what is printed"

OPTIONS = {
    LAUNCH: """
        config_file multi_gpu num_processes num_machines gpu_ids same_network machine_rank main_process_ip
        main_process_port role rdzv_backend rdzv_conf max_restarts monitor_interval module no_python mpirun_hostfile
        training_script training_script_args main_training_function num_cpu_threads_per_process enable_cpu_affinity
        deepspeed_hostfile deepspeed_exclusion_filter deepspeed_inclusion_filter deepspeed_multinode_launcher
        aws_access_key_id aws_secret_access_key
        """,
    TPU: "tpu tpu_use_cluster tpu_use_sudo vm env downcast_bf16",
    LOGGING: "help quiet tee log_dir debug",
    FOLLOWED: """
        mixed_precision use_deepspeed zero_stage offload_optimizer_device offload_param_device gradient_clipping
        """,
    PINNED: "gradient_accumulation_steps",
    REFUSED: "cpu use_fsdp use_megatron_lm use_parallelism_config dynamo_backend deepspeed_config_file",
    UNREAD: """
        offload_optimizer_nvme_path offload_param_nvme_path zero3_init_flag zero3_save_16bit_model
        deepspeed_moe_layer_cls_names
        """,
}
# Options that accelerate reads only together with one that is refused.
REFUSED_GROUPS = ("fsdp_", "megatron_lm_", "parallelism_config_", "fp8_", "dynamo_")

VARIABLES = {
    "MIXED_PRECISION": FOLLOWED,
    "USE_DEEPSPEED": FOLLOWED,
    "DEEPSPEED_ZERO_STAGE": FOLLOWED,
    "DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": FOLLOWED,
    "DEEPSPEED_OFFLOAD_PARAM_DEVICE": FOLLOWED,
    "GRADIENT_CLIPPING": FOLLOWED,
    "GRADIENT_ACCUMULATION_STEPS": PINNED,
    "DEEPSPEED_CONFIG_FILE": REFUSED,
    "TORCH_DEVICE": REFUSED,
    "USE_CPU": REFUSED,
    "USE_FSDP": REFUSED,
    "USE_MEGATRON_LM": REFUSED,
    "USE_PARALLELISM_CONFIG": REFUSED,
    "USE_SAGEMAKER": REFUSED,
    "SAGEMAKER_DISTRIBUTED_TYPE": REFUSED,
    "ALLOW_CP_STANDALONE": REFUSED,
    "DYNAMO_": REFUSED,
    "DYNAMO_BACKEND": REFUSED,
    "DYNAMO_MODE": REFUSED,
    "DYNAMO_USE_DYNAMIC": REFUSED,
    "DYNAMO_USE_FULLGRAPH": REFUSED,
    "DYNAMO_USE_REGIONAL_COMPILATION": REFUSED,
    "FP8_": REFUSED,
    "FP8_BACKEND": REFUSED,
    "FP8_OPT_LEVEL": REFUSED,
    "CONFIG_DS_FIELDS": UNREAD,
    "DEEPSPEED_MOE_LAYER_CLS_NAMES": UNREAD,
    "DEEPSPEED_OFFLOAD_OPTIMIZER_NVME_PATH": UNREAD,
    "DEEPSPEED_OFFLOAD_PARAM_NVME_PATH": UNREAD,
    "DEEPSPEED_ZERO3_INIT": UNREAD,
    "DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": UNREAD,
    "BYPASS_DEVICE_MAP": "only models loaded with a device_map read it, and ours are not",
    "DOWNCAST_BF16": TPU,
    "IN_TPU_POD": TPU,
    "CPU_AFFINITY": LAUNCH,
    "DEBUG_RDV_FILE": LAUNCH,
    "DEBUG_MODE": LOGGING,
    "ENABLE_RICH": LOGGING,
    "LOG_LEVEL": LOGGING,
    "INIT_INCLUDE_BUFFERS": "only models built with init_empty_weights read it, and ours are not",
    "": "the prefix of all of them",
}


def test_every_option_of_accelerate_launch_is_in_the_table():
    options = {action.dest for action in launch_command_parser()._actions}
    in_table = {option for names in OPTIONS.values() for option in names.split()}
    assert options - in_table == {option for option in options if option.startswith(REFUSED_GROUPS)} - in_table
    assert in_table <= options


def test_every_variable_that_accelerate_reads_is_in_the_table():
    folder = Path(accelerate.__file__).parent
    sources = [*folder.glob("*.py"), *folder.glob("utils/*.py"), *folder.glob("commands/*.py")]
    found = set().union(*(re.findall(r"[\"']ACCELERATE_([A-Z0-9_]*)", path.read_text()) for path in sources))
    assert found <= set(VARIABLES)


def environment_of(monkeypatch, tmp_path, *options: str) -> dict[str, str]:
    """Return the variables that `accelerate launch` itself sets for these options."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))  # no config file of the user who runs the tests
    arguments = launch_command_parser().parse_args(["--num_processes", "1", *options, "script.py"])
    arguments, _, _ = _validate_launch_command(arguments)
    arguments.deepspeed_fields_from_accelerate_config = ""  # as `accelerate launch` does without a config file
    prepare = prepare_deepspeed_cmd_env if arguments.use_deepspeed else prepare_simple_launcher_cmd_env
    return prepare(arguments)[1]


REFUSALS = {
    "fsdp": ({"ACCELERATE_USE_FSDP": "true"}, "FSDP.*engine.zero=3"),
    "megatron": ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron"),
    "parallelism": ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "parallelism_config"),
    "sagemaker": ({"ACCELERATE_USE_SAGEMAKER": "true"}, "SageMaker"),
    "dynamo": ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "engine.compile=true"),
    "fp8": ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "fp8, which is not offered"),
    "another device": ({"ACCELERATE_TORCH_DEVICE": "cpu"}, "CUDA_VISIBLE_DEVICES"),
    "a flag with a typo": ({"ACCELERATE_USE_FSDP": "ture"}, "ture is neither true nor false"),
    "a harmless flag with a typo": ({"ACCELERATE_DEBUG_MODE": "ja"}, "neither true nor false"),
    "a stage that is no stage": (
        {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "two"},
        "choose 0, 1, 2 or 3",
    ),
    "an unknown offload device": (
        {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "disk"},
        "none, cpu or nvme",
    ),
    "parameters alone offloaded": (
        {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"},
        "engine.offload=cpu",
    ),
    "clipping that is no number": (
        {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_GRADIENT_CLIPPING": "much"},
        "not a number",
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_would_train_in_another_way_is_refused(refusal):
    environment, message = REFUSALS[refusal]
    with pytest.raises(UserError, match=message) as caught:
        with_accelerate_config(load("demo"), environment)
    assert "\n" not in str(caught.value)


def test_the_cpu_is_refused_where_a_gpu_would_be_planned_for(monkeypatch):
    environment = {"ACCELERATE_USE_CPU": "true"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert with_accelerate_config(load("demo"), environment).engine == load("demo").engine
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match="hide the GPU with CUDA_VISIBLE_DEVICES="):
        with_accelerate_config(load("demo"), environment)


def test_the_options_of_accelerate_launch_arrive(monkeypatch, tmp_path):
    options = ["--use_deepspeed", "--zero_stage", "3", "--offload_optimizer_device", "cpu", "--gradient_clipping", "1"]
    environment = environment_of(monkeypatch, tmp_path, *options, "--mixed_precision", "bf16")
    engine = with_accelerate_config(load("demo", ["optimizer.clip_grad=1.0"]), environment).engine
    assert (engine.zero, engine.offload, engine.precision) == (3, "cpu", "bf16")
    environment = environment_of(monkeypatch, tmp_path, "--dynamo_backend", "inductor")
    with pytest.raises(UserError, match="torch.compile"):
        with_accelerate_config(load("demo"), environment)
    plain = environment_of(monkeypatch, tmp_path)
    assert with_accelerate_config(load("demo"), plain).engine == load("demo").engine


def gradient(recipe) -> torch.Tensor:
    """Return the gradient of one micro-batch, as the engine accumulates it."""
    prepared = prepare_model(recipe, 10)
    engine = DataParallel(recipe, prepared.module.eval(), make_accelerator(recipe))
    with engine.micro_batch(last_of_step=True):
        engine.backward(engine.forward(torch.ones(2, 3, 32, 32)).sum())
    return next(iter(engine.names)).grad.clone()


def test_accelerates_gradient_accumulation_does_not_divide_the_gradient(monkeypatch):
    from accelerate.state import AcceleratorState, GradientState

    recipe = load("demo", ["model.name=test_convnext", "engine.precision=float32"])
    expected = gradient(recipe)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert expected.abs().sum() > 0 and torch.equal(gradient(recipe), expected)


def test_emulated_bf16_is_not_chosen(monkeypatch):
    """torch emulates bf16 on cards such as V100 and T4, where it is slower than float32."""
    from launcher.engines.base import _mixed_precision

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert _mixed_precision("auto", on_gpu=True) == "no"

"""Where pytest begins; `tests/fixtures.py` has what tests ask for."""

import importlib
import os

# Numbers in the tests are those of a CPU, in this process and in those it starts. Tests run side by side: more threads
# than one would fight for the cores, also where a configuration asks for more.
os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "OMP_THREAD_LIMIT": "1"}
os.environ |= {"OPENCV_FOR_THREADS_NUM": "1", "WANDB_MODE": "disabled"}
# Of compiled code the numbers matter, not the speed: without vector instructions it compiles faster.
os.environ |= {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_VEC_ISA_OK": "0"}
# Few graphs are compiled twice: to remember what became of their operations takes longer than to find out.
os.environ |= {"TORCH_FAKE_TENSOR_DISPATCH_CACHE": "0"}

# What rooms import that takes long. Imported first: the hook that checks types ignores compiled files below a room.
PACKAGES = ("beartype", "torchvision", "av", "cv2", "einops", "skimage")


def pytest_configure(config):
    # The process that only hands tests to others needs none of it.
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return
    for name in PACKAGES:
        importlib.import_module(name)
    importlib.import_module("tests.type_checks").install()
    config.pluginmanager.import_plugin("tests.fixtures")

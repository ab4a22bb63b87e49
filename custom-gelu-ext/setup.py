"""What pyproject.toml cannot say: kernels compiled into the wheel, if that is asked for.

    pip install .                          sources only; the first import compiles
    CUSTOM_GELU_EXT_BUILD=aot    pip install --no-build-isolation .    ahead, for this torch
    CUSTOM_GELU_EXT_BUILD=stable pip install --no-build-isolation .    for torch 2.10 and later

``--no-build-isolation`` lets the build see the torch that is installed. An ahead-of-time wheel fits
this Python and this torch; the stable one uses only what torch promises not to change.
"""

import importlib.util
import json
import os
import platform
import sys
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).resolve().parent
PACKAGE = HERE / "src" / "custom_gelu_ext"


def build_module():
    """Load _build.py by itself: importing the package would compile it."""
    spec = importlib.util.spec_from_file_location("_build", PACKAGE / "_build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["_build"] = module
    spec.loader.exec_module(module)
    return module


def portable_flags():
    """A wheel travels: x86-64-v3 (AVX2 and FMA, any x86 since 2015) instead of this very CPU."""
    return ["-march=x86-64-v3"] if platform.machine() in ("x86_64", "AMD64") else []


def extension(kind):
    """Return setup()'s arguments that compile the library of one kind."""
    import torch
    from torch.utils import cpp_extension

    build = build_module()
    without_cuda = build.cuda_missing()
    # The stable build needs nvcc alone: it asks nothing of this torch but its headers.
    if kind == "stable" and build.cuda_home() is not None:
        without_cuda = ""
    if os.environ.get("CUSTOM_GELU_EXT_CUDA") == "0":
        without_cuda = "CUSTOM_GELU_EXT_CUDA=0 left it out"
    arch = "" if without_cuda else build.architectures()
    if arch == build.PORTABLE_ARCHITECTURES:
        # A wheel travels: for GPUs newer than those named the driver compiles it from PTX.
        arch = arch.replace("8.0;", "8.0+PTX;")
    folder = {"aot": PACKAGE / "csrc/torch", "stable": PACKAGE / "stable"}[kind]
    sources = [*sorted((PACKAGE / "csrc/cpu").glob("*.cpp")), *sorted(folder.glob("*.cpp"))]
    compile_args = {"cxx": ["-O3", "-std=c++20", *portable_flags(), "-fopenmp"], "nvcc": []}
    if not without_cuda:
        os.environ["TORCH_CUDA_ARCH_LIST"] = arch
        cpp_extension.CUDA_HOME = str(build.cuda_home())
        sources += sorted((PACKAGE / "csrc/cuda").glob("*.cu"))
        if kind == "aot":
            sources += sorted((PACKAGE / "csrc/cuda").glob("*.cpp"))
        compile_args["cxx"] += ["-DWITH_CUDA"]
        compile_args["nvcc"] = ["-O3", "-std=c++17", "--expt-relaxed-constexpr"]
    facts = {
        "kind": kind,
        "torch": torch.__version__.partition("+")[0],
        "architectures": arch,
        "missing": without_cuda,
    }
    (PACKAGE / "_built.json").write_text(json.dumps(facts))
    maker = cpp_extension.CppExtension if without_cuda else cpp_extension.CUDAExtension
    options = {}
    if kind == "stable":
        compile_args["cxx"] += [
            "-DTORCH_TARGET_VERSION=0x020a000000000000",  # nothing newer than 2.10 is used
            "-DPy_LIMITED_API=0x030a0000",
            "-DUSE_CUDA",
        ]
        options = {"py_limited_api": True}
        if not without_cuda:
            # Not CUDAExtension: it links torch's CUDA libraries, which a CPU build of torch lacks.
            # The one symbol of theirs that is needed is found when it is first called.
            maker = cpp_extension.CppExtension
            options["include_dirs"] = [str(build.cuda_home() / "include")]
            options["library_dirs"] = [str(build.cuda_home() / "lib64")]
            options["libraries"] = ["cudart"]
    module = maker(
        f"custom_gelu_ext._{kind}",
        [os.path.relpath(source, HERE) for source in sources],
        extra_compile_args=compile_args if not without_cuda else compile_args["cxx"],
        extra_link_args=["-fopenmp"],
        **options,
    )
    build_ext = cpp_extension.BuildExtension.with_options(no_python_abi_suffix=kind == "stable")
    arguments = {"ext_modules": [module], "cmdclass": {"build_ext": build_ext}}
    if kind == "stable":
        arguments["options"] = {"bdist_wheel": {"py_limited_api": "cp310"}}
    return arguments


chosen = os.environ.get("CUSTOM_GELU_EXT_BUILD", "")
if chosen not in ("", "aot", "stable"):
    sys.exit(f"CUSTOM_GELU_EXT_BUILD is {chosen!r}; leave it out, or set it to 'aot' or 'stable'")
if chosen:
    setup(**extension(chosen))
else:
    (PACKAGE / "_built.json").unlink(missing_ok=True)
    setup()

"""The CMake preset for an NDK build, as far as it can be run without an NDK.

There is neither an NDK nor an install of ExecuTorch's sources here. In their places: a toolchain file with the cross compiler
of arm64 Linux, and a package with the target names of such an install, made of the arm64 wheel's libraries. Not tested:
that these are the names, and that Android's compiler and C library take the sources.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from arm64 import CPU, QEMU, needs_arm64, runner_bundle
from exported import artifact, checkpoint
from test_bundle import assert_same_logits, measured

from mobile_export.measure.arm64_wheel import pinned_wheel, unpack_arm64_wheel
from mobile_export.measure.build import SOURCES
from mobile_export.measure.bundle import COMPILER, LOADER

TOOLCHAIN = f"""
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER {COMPILER})
foreach(kind LIBRARY INCLUDE PACKAGE)
  if(NOT CMAKE_FIND_ROOT_PATH_MODE_${{kind}})
    set(CMAKE_FIND_ROOT_PATH_MODE_${{kind}} ONLY)
  endif()
endforeach()
set(CMAKE_FIND_ROOT_PATH /nonexistent)
"""
# custom_ops: a static library whose registration nothing refers to, as ExecuTorch's is; here of our own operators.
PACKAGE = """
set(EXECUTORCH_INCLUDE_DIRS ${{CMAKE_CURRENT_LIST_DIR}}/../../../include {wheel}/include
    {wheel}/include/executorch/runtime/core/portable_type/c10)
foreach(pair executorch=executorch extension_threadpool=executorch_threadpool xnnpack_backend=executorch_backend_xnnpack
        optimized_native_cpu_ops_lib=executorch_kernels_optimized quantized_ops_lib=executorch_kernels_quantized
        etdump=executorch_etdump)
  string(REPLACE "=" ";" pair ${{pair}})
  list(GET pair 0 name)
  list(GET pair 1 file)
  add_library(${{name}} SHARED IMPORTED)
  set_target_properties(${{name}} PROPERTIES IMPORTED_LOCATION {wheel}/lib/lib${{file}}.so
                        INTERFACE_LINK_OPTIONS LINKER:--no-as-needed)
endforeach()
foreach(name extension_module_static extension_tensor extension_data_loader extension_flat_tensor)
  add_library(${{name}} INTERFACE IMPORTED)
endforeach()
add_library(custom_ops STATIC {sources}/llama_ops.cpp)
target_include_directories(custom_ops PRIVATE ${{EXECUTORCH_INCLUDE_DIRS}})
target_compile_definitions(custom_ops PRIVATE C10_USING_CUSTOM_GENERATED_MACROS ET_EVENT_TRACER_ENABLED ET_USE_THREADPOOL)
target_compile_options(custom_ops PRIVATE -O2)
"""


@needs_arm64
def test_the_preset_builds_against_an_install_of_executorch(tmp_path):
    made = runner_bundle()
    ndk, checkout = tmp_path / "ndk/build/cmake", tmp_path / "executorch"
    install = checkout / "cmake-out-android-arm64-v8a"
    wheel = unpack_arm64_wheel(pinned_wheel(), tmp_path / "wheel", lambda _: None, download=True)
    for folder, name, text in (
        (ndk, "android.toolchain.cmake", TOOLCHAIN),
        (install / "lib/cmake/ExecuTorch", "executorch-config.cmake", PACKAGE.format(wheel=wheel, sources=SOURCES)),
        (install / "include/executorch/runtime/core", "version.h", '#define ET_VERSION "7.8.9"\n'),
    ):
        folder.mkdir(parents=True)
        (folder / name).write_text(text)
    (wheel / "include/executorch/devtools").rename(checkout / "devtools")
    environment = {**os.environ, "ANDROID_NDK": str(tmp_path / "ndk"), "EXECUTORCH": str(checkout)}
    for command in (
        ["cmake", "-S", str(SOURCES), "--preset", "ndk-arm64", "-B", str(tmp_path / "build")],
        ["cmake", "--build", str(tmp_path / "build"), "--target", "runner"],
    ):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    model = artifact(checkpoint()) / "model.pte"
    loader = [QEMU, "-cpu", CPU, str(made.folder / LOADER), "--library-path", str(made.folder)]
    found = measured([*loader, str(tmp_path / "build/runner")], model)
    assert found.runtime == "executorch 7.8.9, C++"
    assert_same_logits(found, measured([*loader, str(made.folder / "runner")], model))
    assert not Path(tmp_path / "build/CMakeFiles/llama_ops.dir/llama_ops.cpp.o").exists()

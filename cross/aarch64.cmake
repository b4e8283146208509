# Toolchain file for 64-bit ARM televisions: cmake -DCMAKE_TOOLCHAIN_FILE=cross/aarch64.cmake ...
set(OMEGA_TRIPLET aarch64-linux-gnu)
set(OMEGA_PROCESSOR aarch64)
# Every 64-bit ARM processor runs this; what needs more is chosen when the program runs.
set(OMEGA_FLAGS "-march=armv8-a")
set(OMEGA_LINK_FLAGS "-Wl,-z,max-page-size=16384")
set(OMEGA_QEMU qemu-aarch64)
set(OMEGA_QEMU_CPU_DEFAULT cortex-a53)
include("${CMAKE_CURRENT_LIST_DIR}/television.cmake")

# Toolchain file for 32-bit ARM user lands that pass floats in registers (Debian's armhf):
# cmake -DCMAKE_TOOLCHAIN_FILE=cross/armv7-hardfloat.cmake ...
set(OMEGA_TRIPLET arm-linux-gnueabihf)
set(OMEGA_PROCESSOR armv7l)
set(OMEGA_FLAGS "-march=armv7-a -mfpu=neon -mfloat-abi=hard")
set(OMEGA_LINK_FLAGS "")
set(OMEGA_QEMU qemu-arm)
# The oldest with NEON, and without a divide instruction: code for newer processors stops here.
set(OMEGA_QEMU_CPU_DEFAULT cortex-a9)
include("${CMAKE_CURRENT_LIST_DIR}/television.cmake")

# Toolchain file for 32-bit ARM user lands that compute in NEON registers but pass floats as integers, as LG's do:
# cmake -DCMAKE_TOOLCHAIN_FILE=cross/armv7-softfp.cmake ...
set(OMEGA_TRIPLET arm-linux-gnueabi)
set(OMEGA_PROCESSOR armv7l)
set(OMEGA_FLAGS "-march=armv7-a -mfpu=neon -mfloat-abi=softfp")
set(OMEGA_LINK_FLAGS "")
set(OMEGA_QEMU qemu-arm)
set(OMEGA_QEMU_CPU_DEFAULT cortex-a9)
include("${CMAKE_CURRENT_LIST_DIR}/television.cmake")

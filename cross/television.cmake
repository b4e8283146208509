# What the toolchain files of this folder share; they set the variables named here and include it.
#
# -DCMAKE_C_COMPILER=... takes another compiler of the same kind (the television maker's own), and -DOMEGA_SYSROOT=...
# the folder with its libraries, under which qemu then finds the loader. Built programs run under qemu's user mode, with
# the processor that -DOMEGA_QEMU_CPU or the environment's OMEGA_QEMU_CPU names; `ctest` uses it by itself.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR ${OMEGA_PROCESSOR})

# The compiler's own checks read this file again and know nothing of the command line but these.
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES OMEGA_SYSROOT OMEGA_QEMU_CPU)

if(NOT DEFINED CMAKE_C_COMPILER)
  set(CMAKE_C_COMPILER ${OMEGA_TRIPLET}-gcc)
endif()
if(NOT DEFINED OMEGA_SYSROOT)
  set(OMEGA_SYSROOT /usr/${OMEGA_TRIPLET})
endif()
if(NOT DEFINED OMEGA_QEMU_CPU)
  if(DEFINED ENV{OMEGA_QEMU_CPU})
    set(OMEGA_QEMU_CPU $ENV{OMEGA_QEMU_CPU})
  else()
    set(OMEGA_QEMU_CPU ${OMEGA_QEMU_CPU_DEFAULT})
  endif()
endif()

string(APPEND CMAKE_C_FLAGS_INIT " ${OMEGA_FLAGS}")
string(APPEND CMAKE_EXE_LINKER_FLAGS_INIT " ${OMEGA_LINK_FLAGS}")
string(APPEND CMAKE_SHARED_LINKER_FLAGS_INIT " ${OMEGA_LINK_FLAGS}")
string(APPEND CMAKE_MODULE_LINKER_FLAGS_INIT " ${OMEGA_LINK_FLAGS}")

set(CMAKE_CROSSCOMPILING_EMULATOR ${OMEGA_QEMU} -cpu ${OMEGA_QEMU_CPU} -L ${OMEGA_SYSROOT})

# Programs are the building machine's, libraries and headers never.
set(CMAKE_FIND_ROOT_PATH ${OMEGA_SYSROOT})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)

// What runs on a device with kernels of our own, as one file for the compiler; see host.cpp.
#include "launch.cpp"
#include "device_linear.cpp"
#include "device_layers.cpp"
#include "device_step.cpp"
#include "device_adamw.cpp"
#include "device_memory.cpp"

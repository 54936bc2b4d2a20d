// What runs on the CPU, as one file for the compiler: libtorch's headers take it longer than all that stands below.
#include "shim.cpp"
#include "project.cpp"
#include "layers.cpp"
#include "attention.cpp"
#include "attention_blocks.cpp"
#include "attention_forward.cpp"
#include "attention_gradient.cpp"
#include "loss.cpp"

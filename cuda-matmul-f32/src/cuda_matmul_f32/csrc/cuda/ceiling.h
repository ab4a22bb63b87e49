// The fastest that a GPU multiplies and adds in FP32: what the ladder could reach at best.
#pragma once

// TFLOP/s of fused multiply-adds on values that never leave their registers, two operations each,
// over about a fifth of a second on GPU `device`. Call it on a GPU with nothing else to do.
// Throws std::runtime_error with CUDA's message if something fails.
double ffma_ceiling(int device);

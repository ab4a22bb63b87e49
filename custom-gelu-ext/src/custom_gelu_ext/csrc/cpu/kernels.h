// The CPU kernels. They know nothing of torch but its threads, which parallel_for lends them.
#pragma once

#include <functional>

#include "../kinds.h"

namespace custom_gelu::cpu {

// Inputs and outputs in the order of operations.h.
void elementwise(Op op, const Operands& operands);

// In: grad, x, and the bias, one row. Out: x's gradient, and the bias's, one row: the sum of the
// first over all rows, in an order that does not depend on the number of threads.
void bias_gelu_backward(const Operands& operands);

void encode(const Coded& coded);
void decode(const Coded& coded);

// Calls function(begin, end) for pieces of [0, n) of at least `grain`, on several threads. Defined
// by the binding.
void parallel_for(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& function);

}  // namespace custom_gelu::cpu

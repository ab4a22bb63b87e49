// How a rung of a ladder presents itself; the CPU's and the GPU's ladder are each a list of these.
#pragma once

template <typename Launch>
struct Rung {
  int number;
  const char* name;
  const char* summary;  // one line: the bottleneck that it removes
  Launch launch;
};

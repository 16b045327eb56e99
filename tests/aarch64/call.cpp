// One call of a native operator: NAME T FILE. The file holds its tensors, and takes them back with the results in place.
//
// A tensor is int64 numbers, then its memory: its dtype (the number of ScalarType, or -1 for none), how many axes it has,
// sizes, strides, and how many elements its memory has.

#include <cstdio>
#include <cstring>
#include <optional>
#include <string>

#include "cpu/projection/backward.h"
#include "cpu/projection/forward.h"
#include "cpu/walk/backward.h"
#include "cpu/walk/forward.h"

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

struct Argument {
  std::optional<Tensor> tensor;
  int64_t bytes = 0;
  long at = 0;  // of its memory in the file

  operator std::optional<Tensor>() const { return tensor; }
  operator Tensor() const { return *tensor; }
};

int64_t read_number(std::FILE* file) {
  int64_t x = 0;
  if (std::fread(&x, sizeof(x), 1, file) != 1) throw std::runtime_error("the file ends too early");
  return x;
}

Argument read_argument(std::FILE* file, int64_t type) {
  Argument argument;
  if (type < 0) return argument;
  std::vector<int64_t> sizes(read_number(file)), strides(sizes.size());
  for (int64_t& size : sizes) size = read_number(file);
  for (int64_t& stride : strides) stride = read_number(file);
  const int64_t elements = read_number(file);
  argument.tensor.emplace(ScalarType(type), sizes, strides, elements);
  argument.bytes = elements * argument.tensor->element_size();
  argument.at = std::ftell(file);
  if (std::fread(argument.tensor->data_ptr(), 1, argument.bytes, file) != size_t(argument.bytes))
    throw std::runtime_error("the file ends too early");
  return argument;
}

void call(const std::string& name, int64_t t, const std::vector<Argument>& x) {
  using namespace difnet::cpu;
  if (name == "walk_forward")
    walk_forward(x[0], x[1], x[2], x[3], x[4], x[5], t, x[6], x[7], x[8], true);
  else if (name == "walk_backward")
    walk_backward(x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7], t, x[8], x[9], x[10], x[11], x[12], x[13], x[14],
                  x[15], true);
  else if (name == "project_pool_forward")
    projection_forward(x[0], x[1], x[2], x[3], x[4], x[5], x[6]);
  else
    projection_backward(x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7], x[8], x[9]);
}

}  // namespace

int main(int, char** argv) {
  std::FILE* file = std::fopen(argv[3], "r+b");
  std::vector<Argument> arguments;
  for (int64_t left = read_number(file); left > 0; --left) arguments.push_back(read_argument(file, read_number(file)));
  call(argv[1], std::stoll(argv[2]), arguments);
  for (const Argument& argument : arguments) {
    if (!argument.tensor.has_value()) continue;
    std::fseek(file, argument.at, SEEK_SET);
    std::fwrite(argument.tensor->data_ptr(), 1, argument.bytes, file);
  }
  return std::fclose(file);
}

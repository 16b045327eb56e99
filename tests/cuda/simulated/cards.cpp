// The simulated cards, as the tests set and read them, and the stream that torch would name.
#include <cuda_runtime.h>

namespace simulated {
Cards cards;
}

extern "C" {

int32_t aoti_torch_get_current_cuda_stream(int32_t device, void** stream) {
  *stream = reinterpret_cast<void*>(intptr_t(7000 + device));
  return 0;
}

void simulated_set(int32_t count, int32_t current, int32_t room, int32_t capturing) {
  simulated::cards.count = count, simulated::cards.current = current;
  simulated::cards.room = room, simulated::cards.capturing = capturing;
  simulated::cards.launches.clear();
}
int32_t simulated_current() { return simulated::cards.current; }
int32_t simulated_launches() { return int32_t(simulated::cards.launches.size()); }
void simulated_launch(int32_t number, int64_t* to) {
  const simulated::Launch& one = simulated::cards.launches[size_t(number)];
  to[0] = one.device, to[1] = one.blocks, to[2] = int64_t(reinterpret_cast<intptr_t>(one.stream));
}

// The device of the tensors from now on.
int32_t simulated_device = 0;
}

// Torch's adaptive windows of S pixels for G nodes: [floor(n S / G), ceil((n + 1) S / G)). The windows that hold
// pixel x are window x of G pixels for S nodes.
#pragma once

#include <device.h>

namespace difnet::cuda {

DIFNET_DEVICE int window_begin(int node, int pixels, int nodes) { return int(int64_t(node) * pixels / nodes); }
DIFNET_DEVICE int window_end(int node, int pixels, int nodes) {
  return int((int64_t(node + 1) * pixels + nodes - 1) / nodes);
}

}  // namespace difnet::cuda

// A matrix unit as the walks see it: eight registers of kSide rows of kSide places of 32 bits. A place of an operand holds
// a pair of bf16 numbers, one of a sum holds a fp32 number:
//
//   sums[m][n] += sum over the pairs k of a[m][k].first b[k][n].first + a[m][k].second b[k][n].second
//
// This file is the whole interface. Whatever multiplies outer products of 16 x 16 fits behind it; the walks
// (walk/unit_*.h) are written once over it. Registers are template arguments, because instructions name them.
//
//   begin, end       around a parallel task: our configuration of the unit, and then the caller's again
//   clear<C>         sums C = 0
//   load_a<A>, load_b<B>(from)   a register of an operand, kSide rows one after the other
//   multiply<C, A, B>            as above
//   write_rows<C>(from, stride), read_rows<C>(to, stride)   sums C from and to rows in memory, `stride` numbers apart
//
// An instruction set whose flags name a unit gets it, every other one the model, whose bits are those of AMX.
#pragma once

namespace difnet::cpu {

inline constexpr int kSide = 16;

}  // namespace difnet::cpu

#if defined(__AMX_BF16__)
#include "cpu/unit/amx.h"
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#include "cpu/unit/bfmmla.h"
#else
#include "cpu/unit/model.h"
#endif

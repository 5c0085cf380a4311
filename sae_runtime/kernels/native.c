/* A Llama or Qwen2 model, a dictionary and steering over a few tokens, on a processor with AVX-512 and its bf16
instructions.

Weights stay as a GGUF file has them, 32 inputs of an output to a scale: 4 bits with a minimum (Q4_1) or 8 bits
(Q8_0); others are bf16. Numbers become bf16 in registers only, where 0..15 and -127..127 are exact, and scales, in
fp16, are applied to sums. So of such weights nothing is rounded, and a token reads no more of them than the file holds.
What stands between products is rounded to bf16 where transformers rounds it.

All tokens of a call stand in a cache, each at its slot and position, and see what is there up to themselves: one token
of many rows and many of one are the same. What a token gets does not depend on the others of its call, nor on the
number of threads: sums have one order, whatever is computed at once.

Letters: M tokens, N outputs, K inputs, G groups of 32 inputs, D width of a residual, d of a head. */

#include "numbers.h"

#include "threads.h"

#include "products.h"

#include "attention.h"
#include "blocks.h"
#include "lines.h"

#include "dictionary.h"
#include "steering.h"

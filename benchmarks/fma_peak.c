/* Multiply-adds per second of one thread: sixteen independent chains of full vectors that never leave the registers.
 * Compiled with -DLANES=<bytes of a vector / 4>. */
typedef float lanes __attribute__((vector_size(4 * LANES)));

float fma_peak(long steps, float factor) {
    lanes chain[16];
    lanes scale = (lanes){0} + factor;
    for (int c = 0; c < 16; ++c) chain[c] = (lanes){0} + (float)c;
    for (long step = 0; step < steps; ++step)
        for (int c = 0; c < 16; ++c) chain[c] = chain[c] * scale + scale;
    lanes sum = chain[0];
    for (int c = 1; c < 16; ++c) sum += chain[c];
    float total = 0;
    for (int lane = 0; lane < LANES; ++lane) total += sum[lane];
    return total;
}

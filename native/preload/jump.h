/*
 * Hooks without a frame: they look at the arguments and then jump to the function behind, which sees
 * the program's own return address, stack and arguments.
 *
 * JUMP_HOOK(symbol, prepare): `prepare` is called with the (first six integer) arguments and returns
 * where to jump to.
 */
#ifndef SUBSTRATE_PRELOAD_JUMP_H
#define SUBSTRATE_PRELOAD_JUMP_H

#if defined(__x86_64__)
#define JUMP_HOOK(symbol, prepare)                                                                 \
    __asm__(".text\n"                                                                              \
            ".globl " #symbol "\n"                                                                 \
            ".type " #symbol ", @function\n"                                                       \
            ".p2align 4\n" #symbol ":\n"                                                           \
            ".cfi_startproc\n"                                                                     \
            "    .byte 0xf3, 0x0f, 0x1e, 0xfa\n" /* endbr64 */                                     \
            "    pushq %rdi\n"                                                                     \
            "    pushq %rsi\n"                                                                     \
            "    pushq %rdx\n"                                                                     \
            "    pushq %rcx\n"                                                                     \
            "    pushq %r8\n"                                                                      \
            "    pushq %r9\n"                                                                      \
            "    subq $8, %rsp\n"                                                                  \
            "    .cfi_adjust_cfa_offset 56\n"                                                      \
            "    call " #prepare "\n"                                                              \
            "    addq $8, %rsp\n"                                                                  \
            "    popq %r9\n"                                                                       \
            "    popq %r8\n"                                                                       \
            "    popq %rcx\n"                                                                      \
            "    popq %rdx\n"                                                                      \
            "    popq %rsi\n"                                                                      \
            "    popq %rdi\n"                                                                      \
            "    .cfi_adjust_cfa_offset -56\n"                                                     \
            "    jmp *%rax\n"                                                                      \
            ".cfi_endproc\n"                                                                       \
            ".size " #symbol ", . - " #symbol "\n")
#elif defined(__aarch64__)
#define JUMP_HOOK(symbol, prepare)                                                                 \
    __asm__(".text\n"                                                                              \
            ".globl " #symbol "\n"                                                                 \
            ".type " #symbol ", %function\n"                                                       \
            ".p2align 4\n" #symbol ":\n"                                                           \
            ".cfi_startproc\n"                                                                     \
            "    hint #34\n" /* bti c */                                                           \
            "    stp x29, x30, [sp, #-80]!\n"                                                      \
            "    .cfi_adjust_cfa_offset 80\n"                                                      \
            "    .cfi_offset 29, -80\n"                                                            \
            "    .cfi_offset 30, -72\n"                                                            \
            "    stp x0, x1, [sp, #16]\n"                                                          \
            "    stp x2, x3, [sp, #32]\n"                                                          \
            "    stp x4, x5, [sp, #48]\n"                                                          \
            "    str x6, [sp, #64]\n"                                                              \
            "    bl " #prepare "\n"                                                                \
            "    mov x16, x0\n"                                                                    \
            "    ldp x0, x1, [sp, #16]\n"                                                          \
            "    ldp x2, x3, [sp, #32]\n"                                                          \
            "    ldp x4, x5, [sp, #48]\n"                                                          \
            "    ldr x6, [sp, #64]\n"                                                              \
            "    ldp x29, x30, [sp], #80\n"                                                        \
            "    .cfi_adjust_cfa_offset -80\n"                                                     \
            "    .cfi_restore 29\n"                                                                \
            "    .cfi_restore 30\n"                                                                \
            "    br x16\n"                                                                         \
            ".cfi_endproc\n"                                                                       \
            ".size " #symbol ", . - " #symbol "\n")
#endif

#endif

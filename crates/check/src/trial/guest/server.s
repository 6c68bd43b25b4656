# The trial guest: a small command server that runs in ring 0 of a 64-bit guest, linked nowhere: the host copies the
# bytes between maru_trial_start and maru_trial_end into guest memory. Only RIP-relative references are allowed.
#
# The host (session.rs) enters at maru_trial_main with rbx = mailbox, rsp = stack top, paging on. Each round the guest
# writes to COMMAND_PORT, finds the next command in the mailbox and leaves the command's result there.
# rbx and rsp survive every command. The constants are layout.rs's; a difference shows as a trial that cannot start.
# Assembled in this order: server.s, proofs.s, handlers.s.

.set MB_COMMAND, 0
.set MB_ARGUMENT, 8
.set MB_RESULT, 16
.set MB_FAULT_VECTOR, 24
.set MB_EVENTS, 32
.set MB_SAVED_RSP, 40
.set MB_GDT_POINTER, 0x100
.set MB_IDT_POINTER, 0x110
.set MB_LOOP_SCRATCH, 0x1000
.set MB_FPU_AREA, 0x2000

.set COMMAND_PORT, 0x510
.set FAULT_PORT, 0x511
.set PING_PORT, 0x512
.set HIGH_BASE, 0xffffffff80000000
.set MMIO_VIRTUAL, 0xffffffff80200000
.set HOLE_VIRTUAL, 0xffffffff80400000
.set HOLE_ENTRY, 0xffffffff8000a010
.set USER_STACK, 0x30000

.section .text.maru_trial,"ax",@progbits
.globl maru_trial_start
.globl maru_trial_end
.globl maru_trial_loop
.p2align 6
maru_trial_start:
# Where the host finds what it must point the processor at (layout.rs: Entry).
.long maru_trial_main - maru_trial_start
.long trial_faults - maru_trial_start
.long trial_on_divide - maru_trial_start
.long trial_on_breakpoint - maru_trial_start
.long trial_on_undefined - maru_trial_start
.long trial_on_page_fault - maru_trial_start
.long trial_on_timer - maru_trial_start
.long trial_on_software - maru_trial_start
.long trial_on_user_call - maru_trial_start
.long 0

.p2align 4
maru_trial_main:
    mov dx, COMMAND_PORT
    xor eax, eax
    out dx, eax
    mov rax, [rbx + MB_COMMAND]
    lea rcx, [rip + trial_commands]
    movsxd rax, dword ptr [rcx + rax * 4]
    add rax, rcx
    call rax
    mov [rbx + MB_RESULT], rax
    jmp maru_trial_main

.p2align 2
trial_commands:
    .long cmd_loop - trial_commands
    .long cmd_port - trial_commands
    .long cmd_cpuid - trial_commands
    .long cmd_mmio - trial_commands
    .long cmd_tables - trial_commands
    .long cmd_control - trial_commands
    .long cmd_exceptions - trial_commands
    .long cmd_vector - trial_commands
    .long cmd_user - trial_commands
    .long cmd_timer - trial_commands

# --- measured -------------------------------------------------------------------------------------------------------

# u64 maru_trial_loop(u64 rounds /* rdi, >= 1 */, u64 *scratch /* rsi, 32 words */): plain instructions with a data
# dependency and a load and store each round. System V ABI: the host runs these very bytes natively to compare.
.p2align 6
maru_trial_loop:
    mov rax, 0x4d617275
    movabs r8, 6364136223846793005
    xor ecx, ecx
2:  mov [rsi + rcx * 8], rcx
    inc ecx
    cmp ecx, 32
    jb 2b
3:  imul rax, r8
    add rax, rdi
    mov rcx, rax
    shr rcx, 59
    mov rdx, [rsi + rcx * 8]
    xor rax, rdx
    rol rdx, 7
    add rdx, rdi
    mov [rsi + rcx * 8], rdx
    dec rdi
    jnz 3b
    ret

cmd_loop:
    mov rdi, [rbx + MB_ARGUMENT]
    lea rsi, [rbx + MB_LOOP_SCRATCH]
    jmp maru_trial_loop

# Sum of what the host answers to `argument` port reads.
cmd_port:
    mov rcx, [rbx + MB_ARGUMENT]
    mov edx, PING_PORT
    xor r8d, r8d
2:  in eax, dx
    add r8, rax
    dec rcx
    jnz 2b
    mov rax, r8
    ret

# Sum of `argument` times the vendor's first letters (ebx of leaf 0).
cmd_cpuid:
    push rbx
    mov rdi, [rbx + MB_ARGUMENT]
    xor r8d, r8d
2:  xor eax, eax
    xor ecx, ecx
    cpuid
    mov ebx, ebx
    add r8, rbx
    dec rdi
    jnz 2b
    pop rbx
    mov rax, r8
    ret

# `argument` times: a store to a device register, then a load from it; the sum of the loads.
cmd_mmio:
    mov rcx, [rbx + MB_ARGUMENT]
    mov rdx, MMIO_VIRTUAL
    xor r8d, r8d
2:  mov [rdx], ecx
    mov eax, [rdx]
    add r8, rax
    dec rcx
    jnz 2b
    mov rax, r8
    ret

# What a kernel does: the trial guest's commands that must give the right answer.

# Descriptor tables, segments, far return, task register. Result: TR and CS selectors.
cmd_tables:
    lgdt [rbx + MB_GDT_POINTER]
    lidt [rbx + MB_IDT_POINTER]
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    push 0x08
    lea rax, [rip + 2f]
    push rax
    retfq
2:  mov eax, 0x30
    ltr ax
    xor eax, eax
    str ax
    mov ecx, cs
    shl ecx, 16
    or eax, ecx
    sidt [rbx + 0x120]
    cmp word ptr [rbx + 0x120], 0x0fff
    jne 3f
    ret
3:  xor eax, eax
    ret

# Control and debug registers, TLB, MSRs, swapgs. Result: the GS base that swapgs brought in.
cmd_control:
    mov rax, cr4
    xor rax, 0x80
    mov cr4, rax
    xor rax, 0x80
    mov cr4, rax
    mov rax, cr0
    btr rax, 16
    mov cr0, rax
    bts rax, 16
    mov cr0, rax
    clts
    mov rax, cr3
    mov cr3, rax
    mov rax, HOLE_VIRTUAL
    invlpg [rax]
    xor eax, eax
    mov dr0, rax
    mov eax, 0x400
    mov dr7, rax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x801
    wrmsr
    mov ecx, 0xc0000101
    mov eax, 0x11111111
    xor edx, edx
    wrmsr
    mov ecx, 0xc0000102
    mov eax, 0x22222222
    xor edx, edx
    wrmsr
    swapgs
    mov ecx, 0xc0000101
    rdmsr
    shl rdx, 32
    or rax, rdx
    pushfq
    pop rdx
    push rdx
    popfq
    ret

# One of each: breakpoint, int 0x80, undefined instruction, divide error, page fault. Result: one digit for each.
cmd_exceptions:
    mov qword ptr [rbx + MB_EVENTS], 0
    int3
    int 0x80
    ud2
    xor ecx, ecx
    xor edx, edx
    mov eax, 1
    div ecx
    mov rax, HOLE_VIRTUAL
    mov rax, [rax]
    mov rax, [rbx + MB_EVENTS]
    ret

# SSE, x87 and XSAVE state from ring 0. Result: 2 * 0x0123456789abcdef + 32 (its number of one bits).
cmd_vector:
    fninit
    movabs rax, 0x0123456789abcdef
    movq xmm0, rax
    movdqa xmm1, xmm0
    paddq xmm0, xmm1
    pxor xmm1, xmm1
    pcmpeqd xmm2, xmm2
    pand xmm0, xmm2
    fxsave64 [rbx + MB_FPU_AREA]
    pxor xmm0, xmm0
    fxrstor64 [rbx + MB_FPU_AREA]
    push rbx
    mov eax, 1
    xor ecx, ecx
    cpuid
    pop rbx
    bt ecx, 26
    jnc 2f
    mov rax, cr4
    bts rax, 18
    mov cr4, rax
    xor ecx, ecx
    xgetbv
    or eax, 3
    xsetbv
    mov eax, 3
    xor edx, edx
    xsave64 [rbx + MB_FPU_AREA]
    pxor xmm0, xmm0
    xrstor64 [rbx + MB_FPU_AREA]
2:  movq rax, xmm0
    movabs rcx, 0x0123456789abcdef
    popcnt rcx, rcx
    add rax, rcx
    ret

# To ring 3 with sysret and back with syscall, then with iret and back with an interrupt. Result: 42 + 1000.
cmd_user:
    mov ecx, 0xc0000080
    rdmsr
    or eax, 1
    wrmsr
    mov ecx, 0xc0000081
    xor eax, eax
    mov edx, 0x001b0008
    wrmsr
    lea rax, [rip + trial_on_syscall]
    mov rdx, rax
    shr rdx, 32
    mov ecx, 0xc0000082
    wrmsr
    mov ecx, 0xc0000084
    mov eax, 0x200
    xor edx, edx
    wrmsr
    mov [rbx + MB_SAVED_RSP], rsp
    lea rcx, [rip + trial_user]
    mov rax, HIGH_BASE
    sub rcx, rax
    mov r11d, 0x2
    mov esp, USER_STACK
    sysretq
trial_on_syscall:
    mov rsp, [rbx + MB_SAVED_RSP]
    cmp rdi, 42
    jne 2f
    push 0x23
    push USER_STACK
    push 0x2
    push 0x2b
    lea rcx, [rip + trial_user_again]
    mov rax, HIGH_BASE
    sub rcx, rax
    push rcx
    iretq
2:  mov rax, rdi
    ret
trial_user:
    push 41
    pop rdi
    inc edi
    syscall
trial_user_again:
    add edi, 1000
    int 0x81
trial_on_user_call:
    mov rsp, [rbx + MB_SAVED_RSP]
    mov rax, rdi
    ret

# One shot of the local APIC's timer (in x2APIC mode) ends a hlt. Result: interrupts taken.
cmd_timer:
    mov qword ptr [rbx + MB_EVENTS], 0
    mov ecx, 0x1b
    rdmsr
    or eax, 0xc00
    wrmsr
    xor edx, edx
    mov ecx, 0x80f
    mov eax, 0x1ff
    wrmsr
    mov ecx, 0x83e
    mov eax, 0xb
    wrmsr
    mov ecx, 0x832
    mov eax, 0x40
    wrmsr
    mov ecx, 0x838
    mov eax, 100000
    wrmsr
2:  sti
    hlt
    cli
    mov rax, [rbx + MB_EVENTS]
    test rax, rax
    jz 2b
    ret

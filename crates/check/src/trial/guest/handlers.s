# The trial guest's exception and interrupt handlers. rbx is the mailbox in ring 0 and ring 3 alike.

trial_on_breakpoint:
    add qword ptr [rbx + MB_EVENTS], 0x1
    iretq
trial_on_software:
    add qword ptr [rbx + MB_EVENTS], 0x10
    iretq
trial_on_undefined:
    add qword ptr [rbx + MB_EVENTS], 0x100
    add qword ptr [rsp], 2
    iretq
trial_on_divide:
    add qword ptr [rbx + MB_EVENTS], 0x1000
    add qword ptr [rsp], 2
    iretq
# Maps the hole to the first 2 MiB and lets the load run again.
trial_on_page_fault:
    push rax
    push rcx
    mov rax, cr2
    mov rcx, HOLE_VIRTUAL
    cmp rax, rcx
    jne 2f
    mov rcx, HOLE_ENTRY
    mov qword ptr [rcx], 0x83
    add qword ptr [rbx + MB_EVENTS], 0x10000
    pop rcx
    pop rax
    add rsp, 8
    iretq
2:  mov qword ptr [rbx + MB_FAULT_VECTOR], 14
    jmp trial_fault
trial_on_timer:
    push rax
    push rcx
    push rdx
    inc qword ptr [rbx + MB_EVENTS]
    xor eax, eax
    xor edx, edx
    mov ecx, 0x80b
    wrmsr
    pop rdx
    pop rcx
    pop rax
    iretq

# Any other vector 0..31: one 16-byte stub each; the return address tells which.
.p2align 4
trial_faults:
.rept 32
    call trial_fault_common
    .p2align 4
.endr
trial_fault_common:
    pop rax
    lea rcx, [rip + trial_faults]
    sub rax, rcx
    shr rax, 4
    mov [rbx + MB_FAULT_VECTOR], rax
trial_fault:
    mov dx, FAULT_PORT
    xor eax, eax
    out dx, eax
    cli
2:  hlt
    jmp 2b
maru_trial_end:

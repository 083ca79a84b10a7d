// Licensed under the Apache License, Version 2.0 (the "License"); you may
// not use this file except in compliance with the License. You may obtain
// a copy of the License at
//
//      http://www.apache.org/licenses/LICENSE-2.0
//
// Unless required by applicable law or agreed to in writing, software
// distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
// WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
// License for the specific language governing permissions and limitations
// under the License.

// The boot sector of the probe guest; probe.py holds its bytes and says
// what it is for. After a change, assemble it and put the bytes there:
//
//   gcc -c -DITERATIONS=50000000 -Wa,-mx86-used-note=no probe.S -o probe.o
//   ld -m elf_x86_64 -Ttext=0x7c00 --oformat binary probe.o -o probe.bin
//   base64 probe.bin         (without the zeros and 55aa at its end)
//
// The way into long mode is that of the Intel SDM, volume 3A, "Initializing
// IA-32e Mode", and of the AMD64 APM, volume 2, section 14.6 "Enabling and
// Activating Long Mode": protected mode first, then PAE, the page tables,
// EFER.LME, and paging last.
//
// There is no interrupt table on purpose: anything that goes wrong is a
// triple fault, so the machine resets, which libvirt's on_reboot=destroy
// turns into the end of the domain. Nothing can look like success but the
// write at the end.

#ifndef ITERATIONS
#define ITERATIONS 50000000
#endif

#define PML4        0x1000      // three pages in the free memory below
#define PDPT        0x2000      // 0x7c00, identity-mapping the first 2 MiB
#define PD          0x3000      // with one large page
#define TABLES_END  0x4000

#define PRESENT_RW  0x3
#define LARGE       0x80

#define CR0_PE      (1 << 0)
#define CR0_PG      (1 << 31)
#define CR4_PAE     (1 << 5)
#define MSR_EFER    0xc0000080
#define EFER_LME    (1 << 8)

#define PANIC_PORT  0x505       // QEMU docs/specs/pvpanic
#define PANICKED    0x1

        .text
        .globl  _start
        .code16
_start:
        cli
        cld
        ljmp    $0, $1f         // some firmware enters at 0x07c0:0
1:
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        lidt    no_idt

        movw    $PML4, %di      // eax is zero in its lower half only
        xorl    %eax, %eax
        movw    $((TABLES_END - PML4) / 4), %cx
        rep stosl
        movl    $(PDPT | PRESENT_RW), PML4
        movl    $(PD | PRESENT_RW), PDPT
        movl    $(LARGE | PRESENT_RW), PD

        lgdt    gdt_register
        movl    %cr0, %eax
        orl     $CR0_PE, %eax
        movl    %eax, %cr0
        ljmp    $(code32 - gdt), $protected

        .code32
protected:
        movl    $(data - gdt), %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss

        movl    %cr4, %eax
        orl     $CR4_PAE, %eax
        movl    %eax, %cr4
        movl    $PML4, %eax
        movl    %eax, %cr3
        movl    $MSR_EFER, %ecx
        rdmsr
        orl     $EFER_LME, %eax
        wrmsr
        movl    %cr0, %eax
        orl     $CR0_PG, %eax
        movl    %eax, %cr0
        ljmp    $(code64 - gdt), $long_mode

        .code64
long_mode:
        movl    $1, %eax        // bit 32 holds only in a 64-bit register:
        shlq    $32, %rax       // the same bytes run as 32-bit code clear
        shrq    $32, %rax       // eax or leave another number there
        cmpl    $1, %eax
        jne     failed

        movl    $ITERATIONS, %ecx
2:      decq    %rcx
        jnz     2b

        movw    $PANIC_PORT, %dx
        movb    $PANICKED, %al
        outb    %al, %dx
3:      hlt
        jmp     3b

failed:
        ud2

        .balign 8
gdt:
        .quad   0
code32: .quad   0x00cf9a000000ffff      // flat, 32-bit code
data:   .quad   0x00cf92000000ffff      // flat, data
code64: .quad   0x00209a0000000000      // 64-bit code
gdt_register:
        .word   gdt_register - gdt - 1
        .long   gdt
no_idt:
        .word   0
        .long   0

        .org    510
        .word   0xaa55

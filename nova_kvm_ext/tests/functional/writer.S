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

// The boot sector of a guest that writes to its memory as it is told to;
// writer.py holds its bytes. After a change, assemble it and put them there:
//
//   gcc -c -m32 -Wa,-mx86-used-note=no writer.S -o writer.o
//   ld -m elf_i386 -Ttext=0x7c00 --oformat binary writer.o -o writer.bin
//   base64 writer.bin        (without the zeros and 55aa at its end)
//
// It writes a word to each page of its memory, so that none is of zeros, and
// then halts until the next tick of the firmware's clock (18.2 a second).
// After each it writes to as many pages as the time that has passed asks for:
// a host that has no time for it makes it write more at once, not less. The
// time is that of the ACPI timer (3.579545 MHz, 24 bits), which QEMU's
// firmware puts at 0x608.
//
// A command is of 8 bytes on the first serial line: pages in a tick of that
// timer, times 2^20 (4 bytes); pages that are written to (2); 1 for anywhere
// in these, 0 for one after the other (2). Each is answered with K. What was
// sent before the guest was there is lost; after a second without a byte a new
// command begins.

#define MIB_AT      0x7df8      // how much memory, put there by writer.py
#define FIRST       0x200000    // memory below is the firmware's, too
#define WRITTEN     0x1000000   // pages that are written to begin here
#define TIMER       0x608
#define DATA        0x3f8
#define STATUS      0x3fd
#define FIFO        0x3fa

        .text
        .globl  _start
        .code16
_start:
        cli
        cld
        ljmp    $0, $1f
1:
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $0x7c00, %sp

        lgdt    gdt_register    // fs reaches all memory from here on
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        jmp     2f
2:      movw    $8, %bx
        movw    %bx, %fs
        andb    $0xfe, %al
        movl    %eax, %cr0
        ljmp    $0, $3f
3:
        movw    $FIFO, %dx
        movb    $1, %al
        outb    %al, %dx

        movzwl  MIB_AT, %ecx    // but the last MiB, which is the firmware's
        decl    %ecx
        shll    $20, %ecx
        movl    $FIRST, %edi
4:      movl    %edi, %fs:(%edi)
        addl    $0x1000, %edi
        cmpl    %ecx, %edi
        jb      4b

        movw    $TIMER, %dx
        inl     %dx, %eax
        movl    %eax, last

tick:
        sti
        hlt
        incw    quiet
        cmpw    $18, quiet
        jb      command
        movw    $0, have        // the rest of a command was lost

command:
        movw    $STATUS, %dx
        inb     %dx, %al
        testb   $1, %al
        jz      write
        movw    $DATA, %dx
        inb     %dx, %al
        movw    $0, quiet
        movw    have, %bx
        movb    %al, coming(%bx)
        incw    %bx
        movw    %bx, have
        cmpw    $8, %bx
        jne     command
        movw    $0, have
        movl    coming, %eax
        movl    %eax, speed
        movl    coming + 4, %eax
        movl    %eax, pages
        movb    $'K', %al
        outb    %al, %dx
        jmp     command

write:
        movw    $TIMER, %dx
        inl     %dx, %eax
        movl    %eax, %ecx
        subl    last, %eax
        andl    $0xffffff, %eax
        movl    %ecx, last
        mull    speed
        addl    %eax, due
        adcl    $0, %edx
        movl    due, %ecx
        shrdl   $20, %edx, %ecx
        andl    $0xfffff, due
        movzwl  pages, %esi
        cmpl    %esi, %ecx
        jbe     5f
        movl    %esi, %ecx      // more is to write to the same again
5:      testl   %ecx, %ecx
        jz      tick
        decl    %ecx
        testw   $1, pages + 2
        jz      6f
        imull   $1664525, seed, %eax
        addl    $1013904223, %eax
        movl    %eax, seed
        shrl    $16, %eax
        mull    %esi
        shrl    $16, %eax
        jmp     7f
6:      movl    next, %eax
        incl    %eax
        cmpl    %esi, %eax
        jb      7f
        xorl    %eax, %eax
7:      movl    %eax, next
        shll    $12, %eax
        incl    count
        movl    count, %ebx
        movl    %ebx, %fs:WRITTEN(%eax)
        jmp     5b

        .balign 8
gdt:
        .quad   0
        .quad   0x008f92000000ffff      // data, 4 GiB
gdt_register:
        .word   . - gdt - 1
        .long   gdt
last:   .long   0
speed:  .long   0
pages:  .long   0
due:    .long   0
seed:   .long   1
next:   .long   0
count:  .long   1
have:   .word   0
quiet:  .word   0
coming: .quad   0

        .org    510
        .word   0xaa55

// A KVM client that makes its system calls itself: goroutines with a vCPU each, while the runtime preempts them by signals and collects garbage.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

const (
	kvmGetAPIVersion       = 0xae00
	kvmCreateVM            = 0xae01
	kvmGetVcpuMmapSize     = 0xae04
	kvmCreateVcpu          = 0xae41
	kvmSetUserMemoryRegion = 0x4020ae46
	kvmRun                 = 0xae80
	kvmSetRegs             = 0x4090ae82
	kvmGetSregs            = 0x8138ae83
	kvmSetSregs            = 0x4138ae84
	exitIO                 = 2
)

type region struct {
	slot, flags              uint32
	gpa, size, userspaceAddr uint64
}

func check(ok bool, what ...interface{}) {
	if !ok {
		fmt.Fprintln(os.Stderr, what...)
		os.Exit(1)
	}
}

func ioctl(fd int, request, argument uintptr) int {
	for {
		r, _, e := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), request, argument)
		if e == syscall.EINTR { // the runtime's preemption
			continue
		}
		check(e == 0, "ioctl", request, e)
		return int(r)
	}
}

func machine(kvm int, exits int) {
	runtime.LockOSThread()
	memory, err := syscall.Mmap(-1, 0, 0x10000, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	check(err == nil, err)
	copy(memory[0x1000:], "\xe6\x10\xeb\xfc") // again: out 0x10, al; jmp again
	vm := ioctl(kvm, kvmCreateVM, 0)
	r := region{size: 0x10000, userspaceAddr: uint64(uintptr(unsafe.Pointer(&memory[0])))}
	ioctl(vm, kvmSetUserMemoryRegion, uintptr(unsafe.Pointer(&r)))
	vcpu := ioctl(vm, kvmCreateVcpu, 0)
	run, err := syscall.Mmap(vcpu, 0, ioctl(kvm, kvmGetVcpuMmapSize, 0), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	check(err == nil, err)
	sregs := make([]byte, 0x138)
	ioctl(vcpu, kvmGetSregs, uintptr(unsafe.Pointer(&sregs[0])))
	for i := 0; i < 8; i++ {
		sregs[i] = 0 // CS's base
	}
	sregs[12], sregs[13] = 0, 0 // and selector
	ioctl(vcpu, kvmSetSregs, uintptr(unsafe.Pointer(&sregs[0])))
	regs := make([]uint64, 18)
	regs[16], regs[17] = 0x1000, 2
	ioctl(vcpu, kvmSetRegs, uintptr(unsafe.Pointer(&regs[0])))
	for i := 0; i < exits; i++ {
		ioctl(vcpu, kvmRun, 0)
		check(*(*uint32)(unsafe.Pointer(&run[8])) == exitIO, "exit", run[8])
		_ = make([]byte, 100000)
	}
	check(syscall.Munmap(run) == nil && syscall.Munmap(memory) == nil, "munmap")
	check(syscall.Close(vcpu) == nil && syscall.Close(vm) == nil, "close")
}

func main() {
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	check(err == nil, err)
	check(ioctl(int(kvm.Fd()), kvmGetAPIVersion, 0) == 12, "version")
	var group sync.WaitGroup
	for i := 0; i < 4; i++ {
		group.Add(1)
		go func() {
			defer group.Done()
			machine(int(kvm.Fd()), 1000)
		}()
	}
	for i := 0; i < 20; i++ { // no call, so only a signal ends its turn
		group.Add(1)
		go func() {
			defer group.Done()
			for t := time.Now(); time.Since(t) < 20*time.Millisecond; {
			}
		}()
	}
	group.Wait()
	runtime.KeepAlive(kvm)
	runtime.GC()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1)
	check(syscall.Kill(os.Getpid(), syscall.SIGUSR1) == nil, "kill")
	check(<-signals == syscall.SIGUSR1, "signal")
	func() {
		defer func() { check(recover() != nil, "no panic") }()
		var nowhere *int
		*nowhere = 1
	}()
	output, err := exec.Command("/bin/sh", "-c", "echo child; exit 3").Output()
	check(string(output) == "child\n" && err.(*exec.ExitError).ExitCode() == 3, "child", string(output), err)
	name, err := os.Executable()
	check(err == nil && name == os.Args[1], "name", name, err)
	fmt.Println("ok")
}

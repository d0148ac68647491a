// Runs a few guest instructions and prints what they say: `dotnet run --project samples/HelloGuest`.
using Ring3;

// mov si, message; next: lodsb; test al, al; jz done; out 0xe9, al; jmp next; done: hlt; message: ...
byte[] code = [0xbe, 0x0d, 0x10, 0xac, 0x84, 0xc0, 0x74, 0x04, 0xe6, 0xe9, 0xeb, 0xf7, 0xf4, .. "Hello from ring 0 of a guest in ring 3!\n\0"u8];

using var vm = VirtualMachine.Create();
vm.MapMemory(0x1000, 4096);
vm.Memory.Write(0x1000, code);

VirtualCpu cpu = vm.CreateCpu();
cpu.StartInRealMode(0x1000);

while (true)
{
    CpuExit exit = cpu.Run();
    switch (exit.Kind)
    {
        case CpuExitKind.PortWrite:
            Console.Write((char)exit.Data[0]);
            break;
        case CpuExitKind.Halt:
            Console.WriteLine($"The guest halted after {cpu.InstructionsRetired} instructions.");
            return 0;
        default:
            Console.Error.WriteLine($"unexpected exit: {exit.Kind}");
            return 1;
    }
}

/* A client's SYSENTER_ESP and SYSENTER_EIP are never refused: what a processor would not take is made canonical. */
#include "fact.h"

NO_GUEST;

FACT(.mode = LONG)
{
	for (uint32_t msr = 0x175; msr <= 0x176; msr++) {
		uint64_t value;
		EXPECT_EQ(set_msr(m, msr, 0x1234), 1);
		EXPECT_EQ(get_msr(m, msr, &value), 1);
		EXPECT_EQ(value, 0x1234);
		EXPECT_EQ(set_msr(m, msr, 0xabcd000000001234), 1);
		EXPECT_EQ(get_msr(m, msr, &value), 1);
		EXPECT(value == 0x1234 || value == 0xffcd000000001234);
	}
}

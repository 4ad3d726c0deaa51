// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * A test fixture: an I2C adapter with one INA219 on it, whose shunt carries a current that is known at every moment.
 *
 * It is compiled and loaded in the emulated board of `make board` only, and is linked into nothing else. Kernel modules need a
 * licence that is compatible with the GPL; this file may be used under either of the two above.
 *
 * The chip follows TI SBOS448G: continuous conversion of the shunt and then the bus voltage, in the times of table 5 by the
 * configuration; CNVR set when both are new, cleared by a write of the configuration or a read of the power register
 * (8.6.3.2); clipping at the range of PG; current = shunt * calibration / 4096, power = current * bus / 5000, OVF when they do
 * not fit. A conversion is the exact mean of the waveform over its time, rounded to the register's step (10 uV, 4 mV); the chip
 * has no error of gain, zero or noise. Modes other than "continuous, both" keep the last values.
 *
 * Parameters, under /sys/module/ina219_fixture/parameters:
 *   waveform   what the current does, since it was written, again and again:
 *              "MICROVOLTS DURATION_NS:FROM_UA:TO_UA[,DURATION_NS:FROM_UA:TO_UA]..." (straight lines between FROM and TO);
 *              read, it has the moment of the beginning before it (CLOCK_MONOTONIC in ns): the true energy can be computed
 *   fault      none | absent (ENXIO) | timeout (ETIMEDOUT) | stuck (no new values) | ina226 (identity registers of that chip)
 *              | reset (once: the chip forgets its settings, as after a brown-out)
 *   slow_ppm   by how much the chip's clock is slow (the datasheet allows 100000)
 *   shunt_uohm the shunt
 */
#include <linux/delay.h>
#include <linux/i2c.h>
#include <linux/ktime.h>
#include <linux/math64.h>
#include <linux/module.h>
#include <linux/mutex.h>

#define ADDRESS 0x40
#define BUS 1
#define POWER_ON 0x399f
#define READY 2
#define OVERFLOW 1
#define PARTS 32
#define BIT_US 10 /* 100 kHz */

struct part {
	s64 duration_ns;
	s64 from_ua, to_ua;
};

static DEFINE_MUTEX(lock); /* of everything below */
static struct part parts[PARTS] = { { 1000000000, 500000, 500000 } };
static int count = 1;
static u32 supply_uv = 5000000;
static s64 begun_ns;
static char fault[16] = "none";
static u32 slow_ppm;
static u32 shunt_uohm = 100000;

static u16 configuration = POWER_ON, calibration, pointer;
static s64 started_ns; /* of the first conversion after the configuration was written */
static s64 read_cycle = -1; /* the last one of which CNVR was cleared */
static s64 kept_shunt, kept_bus; /* of a chip that converts no more */

/* Charge (uA * ns) from the beginning of a period to so many ns in it. */
static s64 charge_in(s64 t)
{
	s64 sum = 0;
	int i;

	for (i = 0; i < count && t > 0; i++) {
		s64 span = min(t, parts[i].duration_ns);
		s64 rise = parts[i].to_ua - parts[i].from_ua;
		/* the current at `span` is from + rise * span / duration: the mean of both ends times the span */
		s64 end = parts[i].from_ua + div64_s64(rise * span, parts[i].duration_ns);

		sum += div_s64((parts[i].from_ua + end) * span, 2);
		t -= span;
	}
	return sum;
}

static s64 mean_ua(s64 from_ns, s64 to_ns)
{
	s64 period = 0, a, b, turns;
	int i;

	for (i = 0; i < count; i++)
		period += parts[i].duration_ns;
	from_ns = max(from_ns - begun_ns, 0LL);
	to_ns = max(to_ns - begun_ns, from_ns + 1);
	a = div64_s64(from_ns, period);
	b = div64_s64(to_ns, period);
	turns = b - a;
	return div64_s64(turns * charge_in(period) + charge_in(to_ns - b * period) - charge_in(from_ns - a * period),
			 to_ns - from_ns);
}

static s64 conversion_ns(int code)
{
	static const s64 single[] = { 84000, 148000, 276000, 532000 };
	static const s64 averaged[] = { 532000, 1060000, 2130000, 4260000, 8510000, 17020000, 34050000, 68100000 };
	s64 ns = code & 8 ? averaged[code & 7] : single[code & 3];

	return ns + div_s64(ns * slow_ppm, 1000000);
}

static s64 rounded(s64 value, s64 step)
{
	return div64_s64(value >= 0 ? value + step / 2 : value - step / 2, step);
}

/* The shunt and bus registers now, in steps; which cycle is the last complete one. */
static s64 convert(s64 *shunt, s64 *bus, s64 *limit)
{
	s64 shunt_ns = conversion_ns(configuration >> 3 & 15), bus_ns = conversion_ns(configuration >> 7 & 15);
	s64 cycle_ns = shunt_ns + bus_ns, now = ktime_get_ns(), cycle, last, ua;

	*limit = 4000 << (configuration >> 11 & 3);
	*shunt = kept_shunt;
	*bus = kept_bus;
	if ((configuration & 7) != 7 || !strcmp(fault, "stuck"))
		return -1;
	cycle = div64_s64(now - started_ns, cycle_ns) - 1; /* the last of which both are known */
	last = div64_s64(now - started_ns + bus_ns, cycle_ns) - 1; /* the last whose shunt voltage is known */
	if (last >= 0) {
		ua = mean_ua(started_ns + last * cycle_ns, started_ns + last * cycle_ns + shunt_ns);
		/* uA * uohm = pV; 10 uV = 10^7 pV */
		*shunt = kept_shunt = clamp(rounded(ua * shunt_uohm, 10000000), -*limit, *limit);
	}
	if (cycle >= 0)
		*bus = kept_bus = min(rounded(supply_uv, 4000), configuration & 0x2000 ? 8000LL : 4000LL);
	return cycle;
}

static u16 read_register(void)
{
	s64 shunt, bus, limit, cycle = convert(&shunt, &bus, &limit);
	s64 current_ = div_s64(shunt * calibration, 4096);
	s64 power = div_s64(abs(current_) * bus, 5000);
	bool over = current_ > 32767 || current_ < -32768 || power > 65535;
	bool ready = cycle > read_cycle;

	if (!strcmp(fault, "ina226")) {
		if (pointer == 0xfe)
			return 0x5449;
		if (pointer == 0xff)
			return 0x2260;
	}
	switch (pointer) {
	case 0:
		return configuration;
	case 1:
		return (u16)shunt;
	case 2:
		return (u16)(bus << 3) | (ready ? READY : 0) | (over ? OVERFLOW : 0);
	case 3:
		read_cycle = max(read_cycle, cycle);
		return (u16)power;
	case 4:
		return (u16)current_;
	case 5:
		return calibration;
	default:
		return 0;
	}
}

static void write_register(u16 value)
{
	if (pointer == 0) {
		if (value & 0x8000) {
			value = POWER_ON;
			calibration = 0;
		}
		configuration = value;
		started_ns = ktime_get_ns();
		read_cycle = -1;
	} else if (pointer == 5) {
		calibration = value & 0xfffe;
	}
}

static int transfer(struct i2c_adapter *adapter, struct i2c_msg *messages, int number)
{
	int i, bytes = 0;
	u16 value;

	for (i = 0; i < number; i++)
		bytes += 1 + messages[i].len;
	usleep_range(9 * BIT_US * bytes, 9 * BIT_US * bytes + 50);
	mutex_lock(&lock);
	if (!strcmp(fault, "timeout")) {
		mutex_unlock(&lock);
		return -ETIMEDOUT;
	}
	if (!strcmp(fault, "reset")) {
		strscpy(fault, "none", sizeof(fault));
		pointer = 0;
		write_register(0x8000);
	}
	for (i = 0; i < number; i++) {
		struct i2c_msg *m = &messages[i];

		if (m->addr != ADDRESS || !strcmp(fault, "absent")) {
			mutex_unlock(&lock);
			return -ENXIO;
		}
		if (m->flags & I2C_M_RD) {
			value = read_register();
			if (m->len > 0)
				m->buf[0] = value >> 8;
			if (m->len > 1)
				m->buf[1] = value & 0xff;
		} else {
			if (m->len > 0)
				pointer = m->buf[0];
			if (m->len > 2)
				write_register(m->buf[1] << 8 | m->buf[2]);
		}
	}
	mutex_unlock(&lock);
	return number;
}

static u32 functions(struct i2c_adapter *adapter)
{
	return I2C_FUNC_I2C | I2C_FUNC_SMBUS_EMUL;
}

static int set_waveform(const char *text, const struct kernel_param *parameter)
{
	struct part read[PARTS];
	int n = 0, used;
	u32 uv;

	if (sscanf(text, "%u %n", &uv, &used) != 1)
		return -EINVAL;
	for (text += used; n < PARTS; text += used + 1) {
		if (sscanf(text, "%lld:%lld:%lld%n", &read[n].duration_ns, &read[n].from_ua, &read[n].to_ua, &used) != 3)
			return -EINVAL;
		if (read[n].duration_ns <= 0 || read[n].duration_ns > 10000000000LL)
			return -EINVAL;
		n++;
		if (text[used] != ',')
			break;
	}
	mutex_lock(&lock);
	memcpy(parts, read, sizeof(parts));
	count = n;
	supply_uv = uv;
	begun_ns = ktime_get_ns();
	mutex_unlock(&lock);
	return 0;
}

static int get_waveform(char *out, const struct kernel_param *parameter)
{
	int i, length;

	mutex_lock(&lock);
	length = scnprintf(out, PAGE_SIZE, "%lld %u ", begun_ns, supply_uv);
	for (i = 0; i < count; i++)
		length += scnprintf(out + length, PAGE_SIZE - length, "%s%lld:%lld:%lld", i ? "," : "", parts[i].duration_ns,
				    parts[i].from_ua, parts[i].to_ua);
	length += scnprintf(out + length, PAGE_SIZE - length, "\n");
	mutex_unlock(&lock);
	return length;
}

static int set_fault(const char *text, const struct kernel_param *parameter)
{
	char name[sizeof(fault)];

	if (sscanf(text, "%15s", name) != 1)
		return -EINVAL;
	mutex_lock(&lock);
	strscpy(fault, name, sizeof(fault));
	mutex_unlock(&lock);
	return 0;
}

static int get_fault(char *out, const struct kernel_param *parameter)
{
	return scnprintf(out, PAGE_SIZE, "%s\n", fault);
}

static const struct kernel_param_ops waveform_ops = { .set = set_waveform, .get = get_waveform };
static const struct kernel_param_ops fault_ops = { .set = set_fault, .get = get_fault };
module_param_cb(waveform, &waveform_ops, NULL, 0644);
module_param_cb(fault, &fault_ops, NULL, 0644);
module_param(slow_ppm, uint, 0644);
module_param(shunt_uohm, uint, 0644);

static const struct i2c_algorithm algorithm = { .master_xfer = transfer, .functionality = functions };
static struct i2c_adapter adapter = { .owner = THIS_MODULE, .algo = &algorithm, .nr = BUS, .name = "ina219 fixture" };

static int __init begin(void)
{
	begun_ns = started_ns = ktime_get_ns();
	return i2c_add_numbered_adapter(&adapter);
}

static void __exit end(void)
{
	i2c_del_adapter(&adapter);
}

module_init(begin);
module_exit(end);
MODULE_DESCRIPTION("Test fixture of edgecompress: an INA219 that plays a known waveform");
MODULE_LICENSE("Dual MIT/GPL");

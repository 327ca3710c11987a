// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * Reports errors of a GPU as NVIDIA's driver does, on demand: what is written to the parameter `report`, as
 * "DOMAIN:BUS:DEVICE.FUNCTION CODE", is reported from the task that wrote it. The device may be any that is there.
 */
#include <linux/module.h>
#include <linux/pci.h>

#define CREATE_TRACE_POINTS
#include "nvidia_trace.h"

static int report(const char *text, const struct kernel_param *param)
{
	unsigned int domain, bus, slot, function, code;
	struct pci_dev *device;

	if (sscanf(text, "%x:%x:%x.%x %u", &domain, &bus, &slot, &function, &code) != 5)
		return -EINVAL;
	device = pci_get_domain_bus_and_slot(domain, bus, PCI_DEVFN(slot, function));
	if (!device)
		return -ENODEV;
	trace_nvidia_dev_xid(device, code, "made by a test");
	pci_dev_put(device);
	return 0;
}

static const struct kernel_param_ops report_ops = { .set = report };
module_param_cb(report, &report_ops, NULL, 0200);
MODULE_DESCRIPTION("Palisade's stand-in for a GPU driver that reports errors");
MODULE_LICENSE("Dual MIT/GPL");

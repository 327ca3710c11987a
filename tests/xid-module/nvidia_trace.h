/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/* The driver's tracepoint: name and arguments as in kernel-open/nvidia/nv-tracepoint.h of NVIDIA's open modules. */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM nvidia

#if !defined(NVIDIA_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define NVIDIA_TRACE_H

#include <linux/pci.h>
#include <linux/tracepoint.h>

TRACE_EVENT(nvidia_dev_xid,
	TP_PROTO(const struct pci_dev *device, u32 code, const char *message),
	TP_ARGS(device, code, message),
	TP_STRUCT__entry(__field(u32, code)),
	TP_fast_assign(__entry->code = code;),
	TP_printk("code %u", __entry->code)
);

#endif

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE nvidia_trace
#include <trace/define_trace.h>

package region

import (
	"net/netip"
	"slices"
)

// addressCells finds the non-empty combinations of blocks: between two neighbouring
// ends of blocks nothing changes.
func addressCells(blocks []netip.Prefix) []cell {
	starts := []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	// Addresses that are nobody's make the better example.
	for _, known := range []string{"192.0.2.1", "2001:db8::1"} {
		starts = append(starts, netip.MustParseAddr(known))
	}
	for _, b := range blocks {
		starts = append(starts, b.Masked().Addr())
		if after := lastOf(b).Next(); after.IsValid() {
			starts = append(starts, after)
		}
	}
	slices.SortFunc(starts, func(a, b netip.Addr) int {
		if d := nobodys(b) - nobodys(a); d != 0 {
			return d
		}
		return a.Compare(b)
	})
	found := map[string]bool{}
	var cells []cell
	for _, a := range starts {
		truth := newSet(len(blocks))
		for i, b := range blocks {
			if b.Contains(a) {
				truth.add(i)
			}
		}
		if k := setKey(truth); !found[k] {
			found[k] = true
			cells = append(cells, cell{truth: truth, witness: a.String()})
		}
	}
	return cells
}

func nobodys(a netip.Addr) int {
	if s := a.String(); s == "192.0.2.1" || s == "2001:db8::1" {
		return 1
	}
	return 0
}

// lastOf gives the greatest address of a block.
func lastOf(b netip.Prefix) netip.Addr {
	bytes := b.Masked().Addr().AsSlice()
	for i := b.Bits(); i < 8*len(bytes); i++ {
		bytes[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(bytes)
	return a
}

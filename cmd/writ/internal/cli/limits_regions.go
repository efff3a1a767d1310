package cli

import (
	"fmt"
	"strings"

	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
)

// regionPart is what became of a change in one region.
type regionPart struct {
	Region    string `json:"region"`
	Requests  uint32 `json:"requests"`
	Remaining uint32 `json:"remaining"`
	Given     uint32 `json:"given,omitempty"`
	Problem   string `json:"problem,omitempty"`
}

func regionPartsOf(c *ratelimitpb.Counter) (parts []regionPart) {
	for _, p := range c.GetRegions() {
		parts = append(parts, regionPart{p.GetRegion(), p.GetRequests(), p.GetRemaining(), p.GetGiven(), p.GetProblem()})
	}
	return parts
}

// regionLines say where a change was made, of a counter that has one part in each region.
func regionLines(parts []regionPart) string {
	var b strings.Builder
	for _, p := range parts {
		if p.Problem != "" {
			fmt.Fprintf(&b, "  region %s: not changed: %s\n", p.Region, p.Problem)
			continue
		}
		fmt.Fprintf(&b, "  region %s: %d of its %d are left", p.Region, p.Remaining, p.Requests)
		if p.Given > 0 {
			fmt.Fprintf(&b, ", %d given back", p.Given)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// notEverywhere is the error of a change that a region did not make.
func notEverywhere(c *ratelimitpb.Counter) error {
	var missing []string
	for _, p := range c.GetRegions() {
		if p.GetProblem() != "" {
			missing = append(missing, p.GetRegion())
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("not changed in region %s, but in the others that are named above", strings.Join(missing, ", "))
	}
	return nil
}

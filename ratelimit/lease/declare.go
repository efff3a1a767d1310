package lease

import (
	"fmt"
	"time"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

// Declare says for operators where a limit is counted, and how much more than it may
// pass at worst while the shared store keeps its counts.
func Declare(l limit.Limit, m limit.Mode) string {
	switch m {
	case limit.Local:
		return "by each replica alone: n replicas let pass n times the limit"
	case limit.Leased:
		terms, ok := TermsOf(l)
		if !ok {
			return "exactly, for it is too small to be leased: no more than the limit passes"
		}
		return fmt.Sprintf("from shares that replicas hold for %s: no more than the limit passes, and up to 1/17 less", terms.Valid.Round(time.Millisecond))
	case limit.Exact:
	}
	return "exactly: no more than the limit passes"
}

package meshdir

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// labelSelector is how our policies choose workloads, as Istio's do.
type labelSelector struct {
	MatchLabels map[string]string `json:"matchLabels"`
}

func (s *labelSelector) labels() map[string]string {
	if s == nil {
		return nil
	}
	return s.MatchLabels
}

// duration is written as in Go: "1m", "24h".
type duration time.Duration

func (d duration) value() time.Duration { return time.Duration(d) }

// UnmarshalJSON reads a quoted duration.
func (d *duration) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return fmt.Errorf("want a duration such as 10s, 1m or 24h")
	}
	v, err := time.ParseDuration(text)
	if err != nil {
		return fmt.Errorf("%q is not a duration: write for example 10s, 1m or 24h", shorten(text))
	}
	*d = duration(v)
	return nil
}

// policyMode checks what all policies of ours have; others are further values of
// whenUnavailable.
func (c *checker) policyMode(selector *labelSelector, mode, whenUnavailable string, others ...string) {
	c.selector("spec.selector.matchLabels", selector.labels())
	if modes := []string{"enforce", "observe"}; mode != "" && !slices.Contains(modes, mode) {
		c.errorf("spec.mode", "unknown mode %q%s", shorten(mode), didYouMean(mode, modes))
	}
	if answers := append([]string{"Allow", "Deny"}, others...); whenUnavailable != "" && !slices.Contains(answers, whenUnavailable) {
		c.errorf("spec.whenUnavailable", "unknown value %q%s", shorten(whenUnavailable), didYouMean(whenUnavailable, answers))
	}
}

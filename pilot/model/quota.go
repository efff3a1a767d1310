package model

import (
	"slices"
	"strings"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// Key is what a limit is known by to policies of lower layers, which replace it by one
// of the same key: its name, or else what it counts and for whom.
func (l *QuotaLimit) Key() string {
	if l.Name != "" {
		return "name " + l.Name
	}
	counts := "requests"
	switch {
	case l.Algorithm == configpb.QuotaConcurrency:
		counts = "under way"
	case l.Cost != nil:
		counts = l.Cost.From + " " + l.Cost.Header
	}
	var per []string
	for _, d := range l.Per {
		per = append(per, d.Text)
	}
	slices.Sort(per)
	return counts + " per " + strings.Join(per, "\n")
}

// Callers says that the match depends on who calls.
func (m *QuotaMatch) Callers() bool { return len(m.Principals)+len(m.Namespaces) > 0 }

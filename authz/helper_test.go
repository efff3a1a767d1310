package authz

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

func writeFile(t testing.TB, path, content string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func family(t testing.TB, reg *prometheus.Registry, name string) []*dto.Metric {
	t.Helper()
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() == name {
			return f.GetMetric()
		}
	}
	return nil
}

func series(t testing.TB, reg *prometheus.Registry, name string) int {
	t.Helper()
	return len(family(t, reg, name))
}

// sample is the value of a counter or gauge with these label values, in the
// order of the labels' names.
func sample(t testing.TB, reg *prometheus.Registry, name string, labels ...string) float64 {
	t.Helper()
	for _, m := range family(t, reg, name) {
		var have []string
		for _, l := range m.GetLabel() {
			have = append(have, l.GetValue())
		}
		if slices.Equal(have, labels) {
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return 0
}

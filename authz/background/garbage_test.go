package background

import (
	"fmt"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

// percent is GOGC, and initially what it is while no test runs.
func percent() uint64 {
	s := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

var initially = percent()

// While work is done that lasts there is more room for garbage than the service has else.
func TestWorkHasRoom(t *testing.T) {
	t.Setenv("GOGC", "")
	t.Setenv("GOMEMLIMIT", "")
	becomes := func(want uint64) {
		t.Helper()
		proctest.Eventually(t, 30*time.Second, func() error {
			if is := percent(); is != want {
				return fmt.Errorf("GOGC is %d, want %d", is, want)
			}
			return nil
		})
	}
	becomes(initially) // other tests' work is over
	const little = 20  // of what is live, which is little: no room at all
	defer debug.SetGCPercent(debug.SetGCPercent(little))
	if err := Run(t.Context(), func() error { return nil }); err != nil || percent() != little {
		t.Errorf("GOGC is %d after work that did not last, error %v", percent(), err)
	}
	if err := Run(t.Context(), func() error {
		proctest.Eventually(t, 30*time.Second, func() error {
			if within := percent(); within < 5*little {
				return fmt.Errorf("GOGC is %d within", within)
			}
			return nil
		})
		return nil
	}); err != nil {
		t.Error(err)
	}
	becomes(little)
}

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

// While work is done there is more room for garbage than the service has else.
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
	within := uint64(0)
	if err := Run(t.Context(), func() error {
		within = percent()
		return nil
	}); err != nil || within < 5*little {
		t.Errorf("GOGC is %d within, error %v", within, err)
	}
	becomes(little)
}

package kubetest_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/internal/kubetest"
)

// TestStart: it is a real one.
func TestStart(t *testing.T) {
	c := kubetest.Start(t)
	version, err := c.Call(t, http.MethodGet, "/version", nil)
	if err != nil || !strings.Contains(string(version), `"gitVersion": "v1.36.`) {
		t.Errorf("%s, %v", version, err)
	}
}

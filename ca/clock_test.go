package ca

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-mesh/writ/ca/ledger/ledgertest"
	"github.com/writ-mesh/writ/internal/proctest"
)

// TestOwnCertificateFollowsTheWallClock: after a sleep of hours, of which no timer
// knows, and after the clock went back, the authority's own certificate is replaced
// within seconds, and each time once.
func TestOwnCertificateFollowsTheWallClock(t *testing.T) {
	t.Parallel()
	var by atomic.Int64
	a := newAuthority(t, ledgertest.NewMemory(), func() time.Time { return time.Now().Add(time.Duration(by.Load())) })
	by.Store(int64(2 * time.Hour)) // so that there is room to go back
	o, err := newOwn(t.Context(), a, "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- o.run(ctx) }()
	defer func() { cancel(); <-done }()
	for _, jump := range []time.Duration{26 * time.Hour, 25 * time.Hour} {
		old := o.svid.Load()
		by.Store(int64(jump))
		proctest.Until(t, testBudget, "another certificate", func() bool { return o.svid.Load() != old })
		cert, now := o.svid.Load().Certificates[0], a.now()
		if now.Before(cert.NotBefore) || !now.Before(cert.NotAfter) || o.due() {
			t.Errorf("after a jump to %s: from %s until %s at %s", jump, cert.NotBefore, cert.NotAfter, now)
		}
	}
	// What cannot be had is asked for at the tick and not in a loop; what there is stays.
	old := o.svid.Load()
	by.Store(-int64(24 * time.Hour)) // before the root
	before := time.Now()
	proctest.Until(t, testBudget, "two ticks", func() bool { return time.Since(before) > 2*ownTick })
	if o.svid.Load() != old {
		t.Error("a certificate of a time in which the root is not valid")
	}
}

//go:build etcd

package etcdstore

import (
	"context"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// turnPrefix is that of the keys of members that want a turn.
	turnPrefix = "turns/"
	// maxTurn bounds how long a member leaves the head to others, and staleTurn for how
	// long it does so for one that asked and does nothing, being dead.
	maxTurn, staleTurn = 500 * time.Millisecond, time.Second
)

// turns sees to it that every member gets to commit: of several that write at once the
// one beside etcd's leader is always the fastest, and would be the only one. Whoever was
// too slow says so along with the attempt that failed, and how long such a one takes him;
// who succeeds is told, and leaves the head to the others for a moment.
type turns struct {
	own string
	// until is when this member goes on.
	until time.Time
	// asked are the turns that were seen last.
	asked map[string]turn
}

type turn struct {
	revision int64
	since    time.Time
}

func newTurns(member string) *turns { return &turns{own: turnPrefix + member} }

// wait leaves the head to others, if they asked for that.
func (t *turns) wait(ctx context.Context) {
	select {
	case <-time.After(time.Until(t.until)):
	case <-ctx.Done():
	}
}

// ask is the operation of an attempt that fails; took is how long the longest one before
// it took.
func (t *turns) ask(took time.Duration) clientv3.Op {
	return clientv3.OpPut(t.own, took.String())
}

// after are those of an attempt that succeeds; asked tells that this is not the first
// attempt.
func (t *turns) after(asked bool) []clientv3.Op {
	ops := []clientv3.Op{clientv3.OpGet(turnPrefix, clientv3.WithPrefix())}
	if asked {
		ops = append(ops, clientv3.OpDelete(t.own))
	}
	return ops
}

// seen looks for those who ask in the answer to an attempt that succeeded.
func (t *turns) seen(resp *clientv3.TxnResponse, now time.Time) {
	asked, leave := make(map[string]turn), time.Duration(0)
	for _, r := range resp.Responses {
		for _, kv := range r.GetResponseRange().GetKvs() {
			key := string(kv.GetKey())
			if !strings.HasPrefix(key, turnPrefix) || key == t.own {
				continue
			}
			was, known := t.asked[key]
			if !known || was.revision != kv.GetModRevision() {
				was = turn{kv.GetModRevision(), now}
			}
			asked[key] = was
			if took, err := time.ParseDuration(string(kv.GetValue())); err == nil && now.Sub(was.since) < staleTurn {
				leave = max(leave, min(2*took+5*time.Millisecond, maxTurn))
			}
		}
	}
	t.asked, t.until = asked, now.Add(leave)
}

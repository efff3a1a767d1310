package credential

import (
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/writ-mesh/writ/internal/proctest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// returnedLists are what an authority was given back, and its answer.
type returnedLists struct {
	answer   codes.Code
	asked    int
	received []*capb.ReturnRevocationsRequest
}

func (a *authority) ReturnRevocations(s grpc.ClientStreamingServer[capb.ReturnRevocationsRequest, capb.ReturnRevocationsResponse]) error {
	var all []*capb.ReturnRevocationsRequest
	for {
		req, err := s.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		all = append(all, req)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.returned.asked++
	if a.returned.answer != codes.OK {
		return status.Error(a.returned.answer, "no")
	}
	a.returned.received = all
	return s.SendAndClose(&capb.ReturnRevocationsResponse{Adopted: 1})
}

func (a *authority) send(list *capb.RevocationList) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.revoked = list
	close(a.changed)
	a.changed = make(chan struct{})
}

// TestListIsGivenBack: a source that kept a list gives it to an authority that was
// restored since, whole, and takes nothing newer before; once it is refused for good it
// goes on.
func TestListIsGivenBack(t *testing.T) {
	t.Parallel()
	for _, answer := range []codes.Code{codes.Unavailable, codes.InvalidArgument, codes.OK} {
		t.Run(answer.String(), func(t *testing.T) {
			t.Parallel()
			a := newAuthority(t, newRoot(t))
			a.set(func() { a.returned.answer = answer })
			s := newSource(t, setup(t, a))
			running(t, s)
			made := time.Now()
			kept := &capb.RevocationList{Sequence: 9, Statement: "signed", MadeAt: timestamppb.New(made)}
			for i := range 250 {
				kept.Revocations = append(kept.Revocations, &capb.Revocation{SpiffeId: fmt.Sprintf("spiffe://cluster.local/ns/a/sa/%0*d", 1+i*i%1500, i)})
			}
			a.send(kept)
			has := func(sequence uint64) func() bool {
				return func() bool { return s.revokedNow().list.GetSequence() == sequence }
			}
			proctest.Until(t, 10*time.Second, "the list is there", has(9))
			newer := &capb.RevocationList{Sequence: 3, Statement: "other", MadeAt: timestamppb.New(made.Add(2 * time.Second)), RestoredAt: timestamppb.New(made.Add(time.Second))}
			a.send(newer)
			if answer == codes.Unavailable {
				proctest.Until(t, 10*time.Second, "it is tried again", func() (again bool) {
					a.set(func() { again = a.returned.asked > 1 })
					return again
				})
				if !has(9)() {
					t.Error("what was kept is gone")
				}
				return
			}
			proctest.Until(t, 10*time.Second, "the list of now is there", has(3))
			a.mu.Lock()
			defer a.mu.Unlock()
			if answer != codes.OK {
				return
			}
			got := 0
			for i, req := range a.returned.received {
				got += len(req.GetRevocations())
				if (i == 0) != (req.GetStatement() == "signed") || len(req.GetRevocations()) > returnedPart || proto.Size(req) > returnedSize+1<<10 {
					t.Errorf("message %d: %q and %d revocations", i, req.GetStatement(), len(req.GetRevocations()))
				}
			}
			if got != 250 || a.returned.asked != 1 {
				t.Errorf("%d revocations were given back, in %d calls", got, a.returned.asked)
			}
		})
	}
}

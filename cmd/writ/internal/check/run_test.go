package check

import (
	"context"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/cmd/writ/internal/stack"
)

// script is a mesh whose requests are all sent by a shell script.
func script(text string) *stack.Ready {
	command := []string{"sh", "-c", text}
	return &stack.Ready{
		Workloads: []stack.ReadyWorkload{{Name: "web", Address: "10.0.0.1", Ports: map[string]uint32{"http": 80}, Exec: command}},
		Outside:   command,
	}
}

func TestRequestsSentElsewhere(t *testing.T) {
	const echo = `read -r in; printf '{"status":200,"header":{"X-In":["1"]},"body":"%s"}' "$(printf %s "$in" | tr -d '"')"`
	for name, tc := range map[string]struct {
		script string
		check  Check
		got    string
		pass   bool
	}{
		"from a workload": {echo, Check{
			From: "web", Repeat: 3, Request: Request{URL: "http://books/1", Method: "PUT"},
			Expect: Expect{Status: 200, Body: "{method:PUT,url:http://books/1,repeat:3}", Headers: map[string]string{"x-in": "1"}},
		}, "200", true},
		"from outside":            {echo, Check{Direct: "web", Request: Request{Path: "/1"}, Expect: Expect{Status: 200, Body: "url:http://10.0.0.1:80/1"}}, "200", true},
		"refused":                 {`echo '{"error":"EOF"}'`, Check{Direct: "web", Expect: Expect{Refused: true}}, "refused", true},
		"answered, not refused":   {`echo '{"status":200}'`, Check{Direct: "web", Expect: Expect{Refused: true}}, "200", false},
		"too slow":                {`echo '{"error":"x","timeout":true}'`, Check{From: "web", Expect: Expect{Status: 200}}, "timeout", false},
		"no command is no denial": {`echo no such container >&2; exit 1`, Check{Direct: "web", Expect: Expect{Refused: true}}, "not sent", false},
		"nonsense is no denial":   {`echo hello`, Check{Direct: "web", Expect: Expect{Refused: true}}, "not sent", false},
	} {
		t.Run(name, func(t *testing.T) {
			r := Run(context.Background(), script(tc.script), &File{Checks: []Check{tc.check}})[0]
			if r.Got != tc.got || r.Pass != tc.pass {
				t.Errorf("got %q, pass %v (%s); want %q, %v", r.Got, r.Pass, r.Why, tc.got, tc.pass)
			}
			if r.Pass == (r.Why != "") {
				t.Errorf("pass %v, and why is %q", r.Pass, r.Why)
			}
		})
	}
	r := Run(context.Background(), script("echo no such container >&2; exit 1"), &File{Checks: []Check{{From: "web"}}})[0]
	if !strings.Contains(r.Why, "no such container") {
		t.Errorf("the reason is lost: %q", r.Why)
	}
}

// Package version says which build this is.
package version

import (
	"runtime/debug"
)

// Number is the released version that this source becomes.
const number = "0.1.0"

// String gives the number and, if the build knows it, the source revision.
func String() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return number
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return number + "+" + s.Value[:12]
		}
	}
	return number
}

// UIKit as the demo calls it. From the iOS 18.0 SDK: UIApplication.h.
import Foundation

@MainActor open class UIApplication: NSObject {
    open class var shared: UIApplication { fatalError("only for the type checker") }
    open var isIdleTimerDisabled: Bool { get { fatalError() } set { fatalError() } }
}
